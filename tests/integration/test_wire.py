"""The broker's sockets, with CURVE and with malformed messages."""

import random
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
import zmq
import zmq.auth

from broker.shell.curve_auth import CurveAuth, CurveAuthError
from broker.shell.curve_keys import add_key, make_keys
from broker.wire import protocol as wire
from broker.wire.curve import read_pair, read_public_key
from tests.harness.fake_worker import vector
from tests.harness.peers import HELLOS, UUID, HandFrontend, Peer
from tests.harness.processes import Cluster, free_port, until

# --- CURVE -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    make_keys(tmp_path / "keys")
    return tmp_path / "keys"


@pytest.fixture
def endpoints(cluster: Cluster, keys: Path) -> dict[str, str]:
    """Start a broker with keys on TCP, and return the endpoint of each role."""
    found = {role: f"tcp://127.0.0.1:{free_port()}" for role in ("frontend", "worker")}
    flags = ("--frontend-bind", found["frontend"], "--worker-bind", found["worker"], "--keys", str(keys / "broker"))
    broker = cluster.broker(*flags)
    until(lambda: "frontends connect to" in broker.output)
    return found


def test_whole_chain_speaks_curve(cluster: Cluster, endpoints: dict[str, str], keys: Path) -> None:
    cluster.worker("--broker", endpoints["worker"], "--keys", str(keys / "worker"))
    cluster.frontend("--broker", endpoints["frontend"], "--keys", str(keys / "frontend"))
    cluster.until_workers(1)
    answer = httpx.post(f"{cluster.url}/v1/embeddings", json={"model": "fake", "input": "a"})
    assert answer.json()["data"][0]["embedding"] == vector("a").tolist()


@pytest.mark.parametrize("port", ["frontend", "worker"])
@pytest.mark.parametrize("identity", ["frontend", "worker", "stranger"])
def test_port_accepts_only_keys_of_its_role(
    endpoints: dict[str, str], keys: Path, peers: list[Peer], port: str, identity: str
) -> None:
    server, _ = zmq.auth.load_certificate(keys / "worker" / "broker.key")
    if identity == "stranger":
        public, secret = zmq.curve_keypair()
    else:
        public, loaded = zmq.auth.load_certificate(keys / identity / f"{identity}.key_secret")
        assert loaded
        secret = loaded
    peers.append(Peer(endpoints[port]).key(public, secret, server).connect())
    event = peers[0].event(zmq.EVENT_HANDSHAKE_SUCCEEDED, zmq.EVENT_HANDSHAKE_FAILED_AUTH)
    assert (event == zmq.EVENT_HANDSHAKE_SUCCEEDED) == (identity == port)


@pytest.mark.parametrize("port", ["frontend", "worker"])
def test_peer_without_curve_is_rejected(endpoints: dict[str, str], peers: list[Peer], port: str) -> None:
    peers.append(Peer(endpoints[port]).connect())
    refusals = (zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL, zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL, zmq.EVENT_DISCONNECTED)
    assert peers[0].event(zmq.EVENT_HANDSHAKE_SUCCEEDED, *refusals) in refusals
    peers[0].send(HELLOS[port])
    assert peers[0].receive(500) is None


def test_removed_key_is_no_longer_served(cluster: Cluster, endpoints: dict[str, str], keys: Path) -> None:
    broker = cluster.programs[0]
    cluster.worker("--broker", endpoints["worker"], "--keys", str(keys / "worker"))
    cluster.frontend("--broker", endpoints["frontend"], "--keys", str(keys / "frontend"))
    cluster.until_workers(1)
    added = add_key(keys, "worker", "second")
    (keys / "broker" / "workers" / "worker.key").unlink()
    broker.signal(signal.SIGHUP)
    cluster.until_workers(0)
    until(lambda: "this key has been removed" in cluster.programs[1].output)
    cluster.worker("--broker", endpoints["worker"], "--keys", str(added.path.parent))
    cluster.until_workers(1)
    assert httpx.post(f"{cluster.url}/v1/embeddings", json={"model": "fake", "input": "a"}).status_code == 200


def test_revoked_worker_announces_no_model(
    cluster: Cluster, endpoints: dict[str, str], keys: Path, peers: list[Peer]
) -> None:
    broker, server = cluster.programs[0], read_public_key(keys / "worker" / "broker.key")
    frontend = HandFrontend(endpoints["frontend"])
    worker = Peer(endpoints["worker"])
    peers += [frontend, worker]
    frontend.key(*read_pair(keys / "frontend" / "frontend.key_secret"), server).connect()
    worker.key(*read_pair(keys / "worker" / "worker.key_secret"), server).connect()
    for peer in peers:
        peer.event(zmq.EVENT_HANDSHAKE_SUCCEEDED)
    frontend.send(HELLOS["frontend"])
    assert frontend.get(wire.Models)[0].states == []
    worker.send(wire.WorkerLoading(UUID, "host", 1, "false", "call this number"))
    assert [state.name for state in frontend.get(wire.Models)[0].states] == ["false"]
    (keys / "broker" / "workers" / "worker.key").unlink()
    broker.signal(signal.SIGHUP)
    assert frontend.get(wire.Models)[0].states == []
    worker.send(wire.WorkerLoading(UUID, "host", 1, "false", "call that number"))
    worker.send(HELLOS["worker"])
    # One from the reload, and one for the hello, before which the notice was handled.
    assert worker.receive()
    assert worker.receive()
    frontend.send(HELLOS["frontend"])
    frontend.get(wire.Welcome)
    assert frontend.get(wire.Models)[0].states == []


def test_requests_of_a_revoked_frontend_end_soon(cluster: Cluster, endpoints: dict[str, str], keys: Path) -> None:
    broker = cluster.programs[0]
    cluster.worker("--broker", endpoints["worker"], "--keys", str(keys / "worker"))
    flags = ("--broker", endpoints["frontend"], "--keys", str(keys / "frontend"), "--broker-grace-s", "0.5")
    cluster.frontend(*flags)
    cluster.until_workers(1)
    with ThreadPoolExecutor() as threads:
        body = {"model": "fake", "input": "wait never"}
        asked = threads.submit(httpx.post, f"{cluster.url}/v1/embeddings", json=body, timeout=60)
        until(lambda: cluster.number("open_jobs") == 1)
        (keys / "broker" / "frontends" / "frontend.key").unlink()
        broker.signal(signal.SIGHUP)
        assert asked.result(30).status_code == 503


def test_broker_without_working_authentication_refuses_to_start(tmp_path: Path, keys: Path) -> None:
    """Here the socket has CURVE but no authentication."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    auth = CurveAuth(context, keys / "broker")
    with context.socket(zmq.ROUTER) as door:
        door.linger = 0
        public, secret = zmq.auth.load_certificate(keys / "broker" / "broker.key_secret")
        assert secret
        door.curve_publickey, door.curve_secretkey = public, secret
        door.curve_server = True
        door.bind("tcp://127.0.0.1:*")
        with pytest.raises(CurveAuthError, match="does not reject an unknown key"):
            auth.verify_rejection(door)
    context.term()


@pytest.mark.parametrize(
    "bind", ["tcp://0.0.0.0:7999", "tcp://*:7999", "tcp://192.0.2.1:7999", "tcp://[::]:7999", "ipc://@abstract"]
)
def test_public_endpoint_without_keys_is_refused(cluster: Cluster, bind: str) -> None:
    broker = cluster.broker("--worker-bind", bind)
    assert broker.wait() == 2
    who = "every local user" if bind.startswith("ipc:") else "other hosts"
    assert f"{bind} can be reached from {who}; set --keys" in broker.output


def test_long_socket_path_is_explained(cluster: Cluster) -> None:
    broker = cluster.broker("--worker-bind", f"ipc://{cluster.folder}/{'x' * 107}")
    assert broker.wait() == 2
    assert "File name too long; use a path of at most 107 bytes, with scripts/serve a shorter TMPDIR" in broker.output


def test_missing_broker_keys_end_the_start(cluster: Cluster, tmp_path: Path) -> None:
    broker = cluster.broker("--keys", str(tmp_path / "nothing"))
    assert broker.wait() == 2
    assert "Traceback" not in broker.output


# --- malformed -------------------------------------------------------------------------------------------------------


def garbage(seed: int) -> list[list[bytes]]:
    """Return invalid messages."""
    chance = random.Random(seed)
    known = [wire.encode(message)[0] for message in (*HELLOS.values(), wire.Cancel(b"x"), wire.WorkerHeartbeat(1, 1))]
    made: list[list[bytes]] = [[b""], [b"", b""], [b"\x91" * 5000], [b"\xc1"], [b"x" * (1 << 20)], [b"a"] * 500]
    for _ in range(300):
        header = bytearray(chance.choice(known))
        for _ in range(chance.randint(1, 6)):
            header[chance.randrange(len(header))] = chance.randrange(256)
        made.append([bytes(header), *(chance.randbytes(chance.randint(0, 40)) for _ in range(chance.randint(0, 3)))])
    return made


@pytest.mark.parametrize("role", ["frontend", "worker"])
def test_garbage_harms_no_process(cluster: Cluster, peers: list[Peer], role: str) -> None:
    broker, _, _ = cluster.all()
    endpoint = cluster.endpoints[role]
    for seed in range(3):
        peers.append(Peer(endpoint).connect())
        for message in garbage(seed):
            peers[-1].socket.send_multipart(message)
    answer = httpx.post(f"{cluster.url}/v1/embeddings", json={"model": "fake", "input": "a"}, timeout=30)
    assert answer.status_code == 200
    assert broker.process.poll() is None
    while peers:
        peers.pop().close()
    until(lambda: cluster.health()["workers"] == 1)
    assert cluster.health()["open_jobs"] == 0


def test_oversized_frame_ends_only_its_connection(cluster: Cluster, peers: list[Peer]) -> None:
    cluster.all()
    peers.append(Peer(cluster.endpoints["worker"]).connect())
    peers[0].socket.send(bytes(wire.MAX_FRAME_BYTES + 1))
    peers[0].event(zmq.EVENT_DISCONNECTED)
    assert httpx.post(f"{cluster.url}/v1/embeddings", json={"model": "fake", "input": "a"}).status_code == 200


def test_message_before_hello_is_answered_with_who(cluster: Cluster, peers: list[Peer]) -> None:
    cluster.all()
    peers.append(Peer(cluster.endpoints["worker"]).connect())
    peers[0].send(wire.WorkerHeartbeat(1, 0))
    answer = peers[0].receive()
    assert answer
    assert isinstance(wire.decode(wire.TO_WORKER, answer)[0], wire.Who)


def test_worker_with_other_weights_is_refused(cluster: Cluster, peers: list[Peer]) -> None:
    cluster.all()
    peers.append(Peer(cluster.endpoints["worker"]).connect())
    other = wire.ModelInfo("fake", "revision-2", 8, 64)
    peers[0].send(wire.WorkerHello(1, 1, "test", UUID, 1, "host", 1, "CPU", [other], 1, 1, 1))
    answer = peers[0].receive()
    assert answer
    goodbye, _ = wire.decode(wire.TO_WORKER, answer)
    assert isinstance(goodbye, wire.Goodbye)
    assert goodbye.text == "other workers serve revision revision-1 of model 'fake', not revision-2"


def test_draining_broker_sends_its_last_answer(cluster: Cluster, peers: list[Peer]) -> None:
    """The answer has 8 MB and is the last that the broker waits for."""
    broker = cluster.broker()
    until(lambda: "frontends connect to" in broker.output)
    dimension, jobs = 1024, 2048
    model = wire.ModelInfo("wide", "r", dimension, 64)
    worker, frontend = (Peer(cluster.endpoints[role]).connect() for role in ("worker", "frontend"))
    peers += [worker, frontend]
    worker.send(wire.WorkerHello(1, 1, "test", UUID, 1, "host", 1, "CPU", [model], 10**6, 10**6, 2))
    worker.receive()
    frontend.send(HELLOS["frontend"])
    frontend.receive()
    lengths = wire.pack_u32([1] * jobs)
    submission = wire.Submission(1, "wide", wire.Lane.BULK, "", 60_000, wire.Kind.TEXT, lengths)
    frontend.socket.send_multipart(wire.encode(wire.Submit([submission]), [b"x" * jobs]))
    header = worker.receive()
    assert header
    batch, _ = wire.decode(wire.TO_WORKER, header)
    assert isinstance(batch, wire.Batch)
    broker.signal(signal.SIGTERM)
    until(lambda: "draining" in broker.output)
    tokens = wire.pack_u32([3] * jobs)
    result = wire.BatchResult(batch.epoch, batch.batch, dimension, tokens, [], 1, 2, batch.batch)
    worker.socket.send_multipart(wire.encode(result, [bytes(4 * dimension * jobs)]))
    assert broker.wait() == 0
    received: list[wire.Message] = []
    while frames := frontend.receive(1000):
        received.append(wire.decode(wire.TO_FRONTEND, frames)[0])
    assert [type(message) for message in received].count(wire.Answers) == 1
