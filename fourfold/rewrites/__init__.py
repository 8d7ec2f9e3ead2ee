"""model → a cheaper model. Each technique here changes what is computed and owes a quality figure."""
