"""movq: video files to latents, by CogVideo's causal MoVQ encoder.

    from movq_cli import encode_video, open_latents

Importing this package imports no torch; using it does.
"""

__version__ = "0.1.0"
