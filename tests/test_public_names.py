"""The public names of the subpackages, and what importing the package costs."""

import importlib
import inspect
import subprocess
import sys

import pytest

NAMES = {
    "pointsman.claims": "CLAIMS Claim Figures Measurement Standing find measure must",
    "pointsman.compare": "Dataset Part Policy Request compare load load_policy",
    "pointsman.depth": (
        "Batches Decoder EarlyExit ExitLoss ExitPolicy ExportedExits KeyValueCache "
        "LanguageHead MixtureOfRecursions NextScale Recipe Savings SequentialTrunk "
        "TracedTrunk TransformerTrunk Trunk allowed_loss by_cost certified_exits "
        "convolution_head exit_settings export_exits hidden_head jei_dnn joint_loss layers_of "
        "load_exits measure_cuts pooled_linear searched_frontier train_back_to_front "
        "train_front_to_back train_heads train_jointly trunk_of"
    ),
    "pointsman.depth.decoding": (
        "CausalTrunk Decoded Forced Keep LanguageExits TokenCosts TransformersDecoder "
        "causal_trunk decode exit_loss falling fit_language fit_text forced greedy layer_runs "
        "rising_dropout rising_weights speculate text_frontier"
    ),
    "pointsman.depth.diagnostics": (
        "Contributions Lens SkipEffects contributions erasure hidden_states "
        "integrated_gradients linear_maps logit_lens skip_effects sublayer_contributions"
    ),
    "pointsman.depth.layers": (
        "PRICES DuoDecoder DuoRouters FirstStateRouters FixedRuns LayerAnswer LayerCosts "
        "LayerPath LayerPolicy LayerRouters PricedRouters ResidualPerceptron SizedFeedForward "
        "SkipGap SkipNetwork TreeSearch Tried WindowRouters all_patterns choose_runs correct "
        "difficulty enumerate_paths every_path exchanged_runs fit_duo_routers fit_routers "
        "layer_costs likelihood mixed_loss oracle_choices oracle_frontier outcomes_of_runs "
        "pattern_losses pooled_states random_choices random_runs rising run_layers run_paths "
        "shuffled_runs skip_gap skippable skipping_logits whole_path write_on_paths"
    ),
    "pointsman.depth.paths": (
        "Applied BranchedNetwork BranchingNetwork FractalBlock FractalNetwork "
        "ProductionSystem RuleBank Tree convolution_unit dense_unit fractalnet gumbel_choice "
        "mean_join search_branches survivors"
    ),
    "pointsman.depth.recursion": (
        "Chosen DepthRouter EveryToken ExpertChoice MixtureOfRecursions RandomTokens Recursed "
        "TokenChoice TokenCosts attend_only generate token_costs"
    ),
    "pointsman.depth.splitting": (
        "Cut Device Link PartnerError Pipeline Split front joined measure_cuts partner "
        "parts_of predict profile serve"
    ),
    "pointsman.depth.stopping": (
        "Calibrated LearnedGate OverPlaces Patience Window exit_shares gate_features margin "
        "max_probability negative_entropy rule_back rule_state"
    ),
    "pointsman.depth.trunks": (
        "SequentialTrunk TracedTrunk TransformerTrunk Trunk layers_of trunk_of"
    ),
    "pointsman.frontier": (
        "METHODS Certificate Frontier Knob Method Outcomes Pick Point aiq apgr certify cpt "
        "deferral_area deferral_curve fixed_sequence inputs_needed oracle p_value pgr "
        "random_mixing safest_first standard_error upper_bound"
    ),
    "pointsman.learn": (
        "CascadeLosses LeastSquaresGate PolyStep class_balanced clipped_surrogate "
        "direct_preference divergence equal_weights focal generalized_advantages "
        "group_advantages gumbel_straight_through imitation k_means leave_one_out "
        "log_prob_without_replacement neural_sort polytope_step rectified_straight_through "
        "sandwich soft_sort sparsemixer straight_through top_q_probability"
    ),
    "pointsman.moe": (
        "CompetingRouter CompetitionSchedule Context FeedForwardExperts LayerReport Leaks MoE "
        "Routing Slots SoftMerging SoftMoE Telemetry agreement check_guarantee leaks watch"
    ),
    "pointsman.moe.balance": (
        "AdaptiveL1 BiasedTopK ByMode DirichletPrior ExpertRouterCoupling NormedWeights chances "
        "chunk_sparsity dominance entropy grouped_switch importance load locality router_z "
        "sequence_switch switch"
    ),
    "pointsman.moe.convert": (
        "Carving Collected Dense GateScores GatedFeedForward LearnedScale OutputBias "
        "RepresentativeRouter RoutedBlock SharedExpert activity adopt assign average carve "
        "carve_as collected copy from_block is_sparse_block load_block merge padded read_dense "
        "redraw release routed_layers save_block softmax_top_k split top_k_slices typical wrap"
    ),
    "pointsman.moe.experts": (
        "ConvolutionExperts FeedForwardExperts Identity LinearExperts LoRAExperts MixedExperts "
        "Zero freeze"
    ),
    "pointsman.moe.parallel": (
        "Cluster LayerCosts Line MarkovTraces Memory Overlap ParallelExperts PathPredictor "
        "PathTraining Paths PlanBook Served TensorExpertData TiledAdam Timeline Trace Traffic "
        "Wire allot chained choose_degree contiguous crossing even_clusters exflow exflow_exact "
        "fetched_ahead fit_line fit_predictor flat_traffic flows gather_state gradient_norm "
        "greedy imbalance improved moetuner nearest_shard on_demand place_gradients predict "
        "reduce_replicated_gradients regroup reshard routed_layer seconds shard shard_centres "
        "shuffled simulate touched travel two_level_traffic"
    ),
    "pointsman.moe.routers": (
        "AttentionRouter ConditionalRouter CosineRouter HashRouter HyperRouter KANLayer KANRouter "
        "KMeansRouter LinearRouter MaskedRouter NoisyRouter ProductRouter RecurrentRouter Router "
        "Scored SmoothedRouter SummedRouter TaskRouter TwoLevelRouter frequency_mask"
    ),
    "pointsman.moe.systems": (
        "BiLevelAdapter DistributedNetwork ExpertTree OneRoute Rerouting Rounds RoutedAttention "
        "ShardedLinear ShiftedRouter SkipControl SoftValueNetwork TaskMixedAdapter attack "
        "attention_router base_layer bi_level_routing blockffn chain_of_experts cmoe competesmoe "
        "conditional confident_layers coupled decode dirichlet_shaped distributed_architecture "
        "divergence dynamic_dino encode expert_prototyping first_choices_first glider grin "
        "hyperrouter kamoe loss_free manifold_loss maskmoe megablocks merged_by_task mixer "
        "mixture_of_rank mixture_of_shards multi_centre multi_head_routing online_k_means "
        "online_rerouting padded_rows phatgoose_gate places polystep rectify_router remix remoe "
        "residual_tree rmoe robust_paths roma roster_of_experts routing_vectors sampled_routing "
        "sampled_top_k similarity_aware slots_per_expert smear soft_value_network "
        "sparse_transport sparsely_gated successful_neighbours task_aware tutel"
    ),
    "pointsman.pool": "Cascade Decision Log PoolPolicy read_log split_log",
    "pointsman.pool.deferral": (
        "Beliefs Bounds Confidence Gain LearnedDeferral Logistic Monotone Rule Window agreement "
        "confidence margin token_log_probabilities token_margins verdict window_bounds"
    ),
    "pointsman.pool.dispatch": "Agent Call Dispatcher Event Planner State replay",
    "pointsman.pool.features": (
        "Encoder EndpointEncoder Features FolderEncoder TextEncoder VectorEncoder"
    ),
    "pointsman.pool.online": (
        "Bandit ChangeDetection ChebyshevInverseGap Checks Choice DiscountedThompson "
        "DiscountedUpperConfidence DriftAlarm Estimate Knapsack LikelihoodRatio LinearThompson "
        "LinearUpperConfidence Pacer PageHinkley Replay RewardInaction ShiftWarning "
        "SlidingWindowUpperConfidence TsallisInf Wealth doubly_robust effective_rows "
        "explore_then_commit greedy inverse_propensity read_jsonl replay self_normalized weights"
    ),
    "pointsman.pool.programs": (
        "Call Conditional Distribution Run SelfTaughtReasoner Table Trace ancestral "
        "chain_of_thought consensus effective_size enumerated marginal probabilities rejection "
        "same_answer selection_inference"
    ),
    "pointsman.pool.reading": "Price looks_like_log read_log read_prices read_queries split_log",
    "pointsman.pool.routers": (
        "Blend Constant Costs Forest GradientBoosting KMeans Linear MatrixFactorization "
        "MultilayerPerceptron NearestNeighbours Pairwise PerTask Prediction PromptLength Router "
        "SkillProfile"
    ),
    "pointsman.pool.strategies": "BeforeCall Chain RoutedCascade Single",
    "pointsman.run": (
        "Answer Confidence Stage StageCosts State StoppingRule Thresholds evaluating "
        "outcomes_of_stages run_staged stage_sureness stage_thresholds staged_outcomes "
        "subset_thresholds"
    ),
    "pointsman.select": (
        "Guarantee balanced categorical expert_choice first_confident group_limited guarantee_of "
        "guarantees gumbel hashed margin max_probability negative_entropy prototypes rectified "
        "relu sinkhorn sparse_transport threshold top_k top_p window with_capacity "
        "within_best_group"
    ),
    "pointsman.serve.store": (
        "ANONYMOUS Key Process Reservation SERVED Store StoreError Total open_store read_served"
    ),
    "pointsman.steps": (
        "ADAMS_BASHFORTH DDIM DDPM EVERY PUBLISHED AdaptiveGuidance Always Computed DPMSolver "
        "Denoiser Euler Evaluation GaussianMixture Guided LinearGuidance Moment Plan "
        "PlanSearch Sampled Sampler Schedule Settled Skipping StabilityGuided StepPolicy "
        "TokenTransformer Unmasking WhenChanged all_hidden clean_loss cosine energy_distance "
        "even_times expected_evaluations faithfulness fit_denoiser frechet_distance "
        "hide_by_order hide_by_rate linear noise_loss plan_cost random_plans "
        "relative_distance sample sliced_wasserstein step_outcomes straight"
    ),
    "pointsman.supernet": (
        "Choice Count Genotype Nested PrefixBatchNorm2d PrefixConv2d PrefixLayerNorm "
        "PrefixLinear Space Supernet broken_choices count_mflops count_parameters export_onnx "
        "export_program genotype_of load_subnet magnitude make_elastic measure_subnets "
        "recalibrate save_subnet subnet_frontier"
    ),
    "pointsman.supernet.binary": (
        "Binary Reused SpanningTree TreeDistance make_binary reuse sign spanning_tree"
    ),
    "pointsman.supernet.channels": (
        "ChannelGroup Slice call_with channel_groups narrow reorder zeroed"
    ),
    "pointsman.supernet.elastic": (
        "Bits Blocks Cut Declaration Depth Dial Elastic Experts Heads Kernel NamedWidth OneOf "
        "Operation Quantised Setting Skip Sliced Width"
    ),
    "pointsman.supernet.graphs": (
        "Gather Graph GraphLayer format_choice format_costs inherit model_bits readout_scores "
        "searchable_formats sparse_code unit_gate"
    ),
    "pointsman.supernet.language": (
        "Nothing PerturbationPruning SkipSublayers Sublayer SublayerDropping call "
        "find_sublayers layers_and_widths logits_of next_token_losses tidy weighted_inputs"
    ),
    "pointsman.supernet.low_rank": ("DynamicalLowRank LowRank make_low_rank rank_within"),
    "pointsman.supernet.predictors": ("GaussianProcess QualityPredictor regressions"),
    "pointsman.supernet.pruning": (
        "BlockPruning Criterion Fading Measure Pruned PruningGame PruningReport "
        "TransportPruning activation at_random batch_norm_scale gated_parameters latency macs "
        "magnitude mixed_saliency parameters participation prune prune_by_blocks run_gated "
        "taylor transport_mask trial_saliency unit_sums"
    ),
    "pointsman.supernet.relax": (
        "AnyInput ArchitectureGradient Chain Draw ExpectedCost Gate GumbelGate "
        "InterpolatedDepth InterpolatedWidth Node PairGate PartialChannels Projection "
        "Relaxation StateGraph Thresholds alternate architecture_gradients budget_loss "
        "dirichlet_gate edge_flow edges_within expected_cost first_order interpolate_channels "
        "keep_unsampled operation_costs project release select_by_perturbation softmax_gate "
        "two_copies two_copies_step two_path_gate unrolled"
    ),
    "pointsman.supernet.scores": (
        "Agreement Score ScoreTable TRIVIAL ZERO_COST combined_scores epsinas flops grad_norm "
        "gradsign jacob_cov naswot parameters partial_agreement rank_agreement score_networks "
        "snip synflow"
    ),
    "pointsman.supernet.search": (
        "Engine Evaluation Problem Proposals breaking_options front hypervolume "
        "hypervolume_share search"
    ),
    "pointsman.supernet.search.engines": (
        "conservative diffusion_search evolve_lists front_search linas nsga2 optuna_nsga2 "
        "random_search reinforce sampled tpe"
    ),
    "pointsman.supernet.training": (
        "BalancedPaths Batch Batches FairPaths ImportanceBatches ImportancePaths "
        "InheritedQuality LevelPaths LoaderBatches Path Paths RandomBatches SandwichPaths "
        "SortedPaths Split SplitWeights UniformPaths WeightExperts best_split cross_entropy "
        "disagreement finetune_elastic largest_cut path_evolution ranking several_weights "
        "share_right soft_cross_entropy split_weights train_supernet"
    ),
    "pointsman.supernet.transforming": (
        "AutoregressivePolicy Branches CompressionReward LayerwisePolicy MULTIPLIERS OPERATIONS "
        "TreePolicy cell_space edited part_of path_level_search policy_search replace_identity "
        "replicated shrunk split tangent_reward transformed with_node"
    ),
}
LEVELS = "route cost errors select learn run depth steps moe supernet pool"


def public(name: str) -> list[str]:
    return sorted(importlib.import_module(name).__all__)


def imported_with(modules: str) -> set[str]:
    """What a fresh process has imported after these modules of the package."""
    code = f"import sys; import {modules}; print(*{{name.split('.')[0] for name in sys.modules}})"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(ran.stdout.split())


@pytest.mark.parametrize("name", NAMES)
def test_public_names_are_those_that_were_promised(name: str) -> None:
    assert public(name) == sorted(NAMES[name].split())


@pytest.mark.parametrize("name", NAMES)
def test_public_classes_and_functions_are_documented(name: str) -> None:
    module = importlib.import_module(name)
    assert module.__doc__
    for each in public(name):
        found = getattr(module, each)
        if inspect.isclass(found) or inspect.isfunction(found):
            assert found.__doc__, each


def test_importing_the_package_pulls_in_nothing_heavy() -> None:
    heavy = {"torch", "numpy", "scipy", "pandas", "matplotlib", "sklearn", "pyarrow", "rich"}
    assert imported_with("pointsman").isdisjoint(heavy | {"click", "jinja2"})


def test_importing_the_levels_pulls_in_no_charts_and_no_command_line() -> None:
    levels = ", ".join(f"pointsman.{level}" for level in LEVELS.split())
    found = imported_with(levels)
    assert "torch" in found
    assert found.isdisjoint({"matplotlib", "rich", "click", "jinja2"})
