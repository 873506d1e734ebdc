"""What every run has, whatever it trains: its folder, its stored configuration, its machine, a polite stop."""
