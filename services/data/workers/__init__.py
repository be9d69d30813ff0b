"""Door 3: what asks markets, chains and pairs each at their own pace."""
