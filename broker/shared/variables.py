"""Environment variables that begin like Vecmill's but are not. Needs only Python."""

import re
from collections.abc import Mapping

#: Kubernetes sets these for every Service in a pod's namespace. Those of a Service called vecmill-broker begin with
#: VECMILL_BROKER_ like our own. https://kubernetes.io/docs/concepts/services-networking/service/#environment-variables
_SERVICE_LINK = re.compile(r"(.+_)?(SERVICE_HOST|SERVICE_PORT(_.+)?|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)")
#: The value of the one more that it sets, …_PORT, which can also be the name of a setting.
_SERVICE_URL = re.compile(r"(tcp|udp|sctp)://.*")


def find_variables(prefix: str, environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables with this prefix, without those that Kubernetes sets for its Services."""
    return {
        variable: text
        for variable, text in environ.items()
        if variable.startswith(prefix) and not _is_service_link(variable.removeprefix(prefix), text)
    }


def _is_service_link(name: str, text: str) -> bool:
    is_port = name == "PORT" or name.endswith("_PORT")
    return bool(_SERVICE_LINK.fullmatch(name) or (is_port and _SERVICE_URL.fullmatch(text)))
