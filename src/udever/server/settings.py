"""The service's settings: flags, then UDEVER_* variables, then a TOML file, then the defaults.

Invariant: the only place that reads the environment; what is printed shows no secret.
Does not know: who uses a setting, or for what.
"""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from udever.errors import OptionError

LOOPBACK = ("127.0.0.1", "localhost", "::1")
MASK = "********"


def _default_database_url() -> str:
    base = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return f"sqlite:///{Path(base) / 'udever' / 'udever.sqlite'}"


class Settings(BaseSettings):
    """All settings of `udever serve`; `UDEVER_` and the name in capitals is the variable of each."""

    model_config = SettingsConfigDict(env_prefix="UDEVER_", extra="forbid", frozen=True, allow_inf_nan=False)

    config: Path | None = None
    """The TOML file."""
    host: str = "127.0.0.1"
    port: int = Field(8000, ge=0, le=65535)
    models: Annotated[tuple[str, ...], NoDecode] = Field(("udever-nano",), min_length=1)
    """What `Embedder.load` takes, or ID=that; in a variable separated by commas."""
    load: Literal["start", "lazy"] = "start"
    """lazy: a model is loaded by the first request for it."""
    precision: Literal["auto", "fp32", "bf16", "int8"] = "auto"
    device: str = "auto"
    batch_tokens: int = Field(2048, ge=1)
    """Tokens the model sees at once."""
    max_wait_seconds: float = Field(30.0, gt=0)
    """A request that would wait longer than this for others is refused."""
    load_wait_seconds: float = Field(30.0, ge=0)
    """How long a request waits for its model to be loaded."""
    truncate: Literal["error", "end", "start"] = "error"
    """What happens to over-long texts where neither the request nor its key says."""
    prices: dict[str, Annotated[int, Field(ge=0)]] = Field(default_factory=dict)
    """Model id → microcredits per token; where none is given, what the model's manifest says, else 1."""
    console: bool = True
    """Pages beside the API: catalogue, models, comparison, playground, account."""
    catalog_dir: Path | None = None
    """A folder of manifests (*.toml) of the operator's own models, beside or instead of those that ship with udever."""
    auth: bool = True
    insecure_no_auth: bool = False
    """Serve without keys even to other machines."""
    database_url: str = Field(default_factory=_default_database_url, repr=False)
    pepper: str | None = Field(None, repr=False)
    """Secret under which keys are hashed; SQLite keeps one in a file beside itself, PostgreSQL must be told."""
    signup_microcredits: int = Field(0, ge=0)
    """Credit of a new account at POST /v1/signup; 0 switches sign-up off."""
    session_seconds: float = Field(43_200.0, ge=60)
    """How long a sign-in on the pages lasts."""
    playground_open: bool = False
    """Let visitors without a key use the playground's models for nothing, so much a minute from one address."""
    playground_requests_per_minute: int = Field(20, ge=1)
    """How often such a visitor may run the playground."""
    playground_tokens_per_minute: int = Field(20_000, ge=1)
    """... and for how many tokens."""
    trusted_proxies: Annotated[tuple[str, ...], NoDecode] = ("127.0.0.1", "::1")
    """Addresses whose X-Forwarded-For is believed."""
    cors_origins: Annotated[tuple[str, ...], NoDecode] = ()
    """Origins (https://app.example.com, or *) whose pages may call the API from a browser."""
    max_body_bytes: int = Field(8 * 2**20, ge=1024)
    max_header_bytes: int = Field(32 * 2**10, ge=1024)
    header_seconds: float = Field(10.0, gt=0)
    """A client must have sent its headers by then."""
    body_seconds: float = Field(30.0, gt=0)
    """... and its body."""
    send_seconds: float = Field(60.0, gt=0)
    """A client that has not read its answer by then is cut off."""
    keep_alive_seconds: int = Field(75, ge=1)
    """An idle connection is closed after this; longer than the usual 60 s of load balancers."""
    grace_seconds: int = Field(25, ge=1)
    """From SIGTERM to the end: less than the 30 s that Kubernetes gives."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    otlp_endpoint: str | None = None
    """Where traces go (OTLP over HTTP); none are made without it."""

    @field_validator("models", "trusted_proxies", "cors_origins", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Flags, variables, file; no .env file is picked up by accident."""
        path = init_settings().get("config") or env_settings().get("config")
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls, toml_file=path)

    def check(self) -> None:
        """Raises OptionError: settings that do not go together."""
        if not self.auth and self.host not in LOOPBACK and not self.insecure_no_auth:
            raise OptionError(
                f"--no-auth on {self.host} would serve everyone who can reach this machine",
                hint="use --host 127.0.0.1, or insist with --insecure-no-auth",
            )

    def as_toml(self) -> str:
        """Every setting as a TOML file that means the same, secrets masked."""
        values = self.model_dump(mode="json", exclude={"config"})
        values |= {name: mask(values[name]) for name, mask in _MASKS.items() if values[name] is not None}
        tables = {name: value for name, value in values.items() if isinstance(value, dict)}
        lines = [f"{name} = {_toml(value)}" for name, value in values.items() if name not in tables]
        lines = [f"# {line.removesuffix('null')}(not set)" if line.endswith("= null") else line for line in lines]
        for name, table in tables.items():
            lines += ["", f"[{name}]", *(f"{_toml(key)} = {_toml(value)}" for key, value in table.items())]
        return "\n".join(lines) + "\n"


def load_settings(flags: Mapping[str, Any] | None = None) -> Settings:
    """The settings of this process; `flags` go before everything else.

    Raises:
        OptionError: an unknown setting, an impossible value or an unreadable file; names the setting.
    """
    given = {name: value for name, value in (flags or {}).items() if value is not None}
    path = given.get("config") or os.environ.get("UDEVER_CONFIG")
    if path and not Path(path).is_file():
        raise OptionError(f"no settings file {path}", hint="--config names a TOML file")
    try:
        return Settings(**given)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        name = ".".join(map(str, first["loc"]))
        raise OptionError(f"the setting {name}: {first['msg']}", hint="udever serve --print-config") from error
    except ValueError as error:  # TOML that cannot be parsed, a variable that is no JSON
        raise OptionError(f"the settings cannot be read: {error}", hint="udever serve --print-config") from error


def _mask_password(url: str) -> str:
    """Up to the last @: what stands before it may be part of a password, however that is spelled."""
    url = re.sub(r"(?i)([?&][^=&]*password=)[^&]*", rf"\1{MASK}", url)
    return re.sub(r"://([^:/@]*):.*@", rf"://\1:{MASK}@", url)


_MASKS = {"pepper": lambda _: MASK, "database_url": _mask_password, "otlp_endpoint": _mask_password}


def _toml(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)  # the strings, numbers, booleans and lists of JSON are TOML's too
