"""Where weights come from: names a user may say, and formats other than ours."""
