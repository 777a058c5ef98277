"""One small file a study: CONFIG = Config(...)."""
