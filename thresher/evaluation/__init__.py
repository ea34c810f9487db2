"""What each method costs in quality: tasks, scorers, runs and pictures."""
