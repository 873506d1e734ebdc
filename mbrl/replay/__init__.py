"""Real experience: episode files, the store that keeps them, and random clips of them."""

from mbrl.replay.clips import ClipReplay, ReplayConfig
from mbrl.replay.episode import DamagedEpisode, Episode
from mbrl.replay.store import EpisodeStore

__all__ = ["ClipReplay", "DamagedEpisode", "Episode", "EpisodeStore", "ReplayConfig"]
