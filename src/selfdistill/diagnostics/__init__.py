"""What the papers measure beside accuracy: saved rollouts and any checkpoint in, figures with intervals and a picture out. Nothing here trains."""
