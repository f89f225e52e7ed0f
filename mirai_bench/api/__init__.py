"""The Python API: what `mirai_bench` exports, for scripts, notebooks and plug-ins."""
