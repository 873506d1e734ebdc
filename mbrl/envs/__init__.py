"""Real worlds behind one door: `mbrl.envs.make.make_envs`."""
