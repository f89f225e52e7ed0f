"""Image encoders that are small enough for tests."""


def make_shallow(monkeypatch, depth: int) -> None:
    """Gives the ViTs that timm creates from now on `depth` blocks."""
    import timm

    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, **options: create(name, depth=depth, **options))
