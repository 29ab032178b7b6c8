import httpx

from serving.settings import HttpSettings, ServerSettings


def test_caches_are_cleared_only_where_a_setting_allows_it(serve_edge, engine) -> None:
    closed = serve_edge(engine)
    assert httpx.post(f"{closed}/v1/cache/clear", timeout=30).status_code == 404
    assert "/v1/cache/clear" not in httpx.get(f"{closed}/openapi.json", timeout=30).json()["paths"]
    open_ = serve_edge(engine, ServerSettings(http=HttpSettings(allow_cache_clear=True)))
    answer = httpx.post(f"{open_}/v1/cache/clear", timeout=30)
    assert (answer.status_code, answer.json()) == (200, {"status": "cleared"})
    assert httpx.get(f"{open_}/v1/cache/clear", timeout=30).status_code == 405
    assert engine.num_clears == 1
