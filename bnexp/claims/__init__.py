"""Published claims, one file a source: what was stated, the sweep that tests it, the rule that judges it."""
