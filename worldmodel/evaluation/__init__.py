"""How good predicted videos are: metrics, the networks behind them, and the published protocol."""
