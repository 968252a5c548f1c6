"""Learning while serving: bandits, pacing, estimates from logs, alarms."""
