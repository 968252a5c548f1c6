"""The main job on an evaluation log: routers and cascades over models that came trained."""
