# ruff: noqa: E501
"""`scripts/mutants`: plant a bug in a copy of the tree, run the tests that should find the bug, and repeat for each bug.

The bugs are here and in `model_bugs.py`. With an argument, only bugs with this text in their name or file are planted;
`--shard NUMBER` plants every eighth bug.
The exit status is 1 if the tests miss a bug. A row with a text that does not occur exactly once in the code is an error, so
that the list follows the code.
"""

import concurrent.futures
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from model_bugs import MODEL_BUGS

ROOT = Path(__file__).resolve().parent.parent
#: Parts of the list for `--shard`. A part takes about 5 minutes on 2 cores.
SHARDS = 8
#: Unit tests of the broker's core, without `test_` and `.py`.
UNIT = ["abandonment", "events", "eviction", "holdings", "job_history", "metrics", "queues", "quota", "revisions"]
UNIT += ["throughput"]
UNIT += sorted(path.stem.removeprefix("test_") for path in ROOT.glob("tests/unit/broker/test_scheduler_*.py"))
TESTS = [f"tests/unit/broker/test_{name}.py" for name in UNIT]
TESTS += ["tests/unit/frontend/test_session.py", "tests/unit/workers/test_session.py"]
TESTS += ["tests/unit/workers/test_catalog.py", "tests/unit/broker/test_reloads.py", "tests/property"]


class Bug(NamedTuple):
    """Replacement of one text in one file by a wrong one; the name describes the effect."""

    name: str
    file: str
    right: str
    wrong: str
    #: Arguments of pytest.
    tests: tuple[str, ...] = tuple(TESTS)

    @property
    def path(self) -> str:
        """Path of the file from the repository's root; a bare name is in `broker/core`."""
        return self.file if "/" in self.file else f"broker/core/{self.file}"


BUGS = [
    Bug("answers go out twice", "results.py", "    worker.release_lease(message.batch, now)\n    if matches", "    if matches"),
    Bug("old epochs' results count", "results.py", "lease = worker.leases.get(message.batch) if message.epoch == state.epoch else None", "lease = worker.leases.get(message.batch)"),
    Bug("a dead worker's jobs are lost", "eviction.py", "        requeue_lease(state, lease)\n    if notify", "    if notify"),
    Bug("everything a dead worker held is blamed", "eviction.py", "        if lease in blamed:", "        if blamed:"),
    Bug("a leaving worker is blamed", "eviction.py", "may_blame = reason == EvictionReason.LEASE_EXPIRED or (", "may_blame = True or ("),
    Bug("suspects run together", "queues.py", "            if job.suspect:\n                job.is_queued = True", "            if False:\n                job.is_queued = True"),
    Bug("poison is never called so", "blame.py", "if job.crashes < self._limits.max_crashes:", "if True:"),
    Bug("poison is not blocked", "outcomes.py", "        state.blame.block_input(job, now)\n", ""),
    Bug("a returned connection is not pardoned", "scheduler.py", "        state.blame.clear_jobs(hello)\n", ""),
    Bug("credit is ignored", "worker.py", "max(0, self.credit - len(self.unseen))", "1"),
    Bug("unseen batches are not counted against the credit", "worker.py", "max(0, self.credit - len(self.unseen))", "self.credit"),
    Bug("a draining worker gets work", "pool.py", "if model in worker.models and not worker.draining]", "if model in worker.models]"),
    Bug("any answer renews the lease", "worker.py", "if following.batch > batch:", "if True:"),
    Bug("silent workers stay", "scheduler.py", "for worker in state.pool.find_silent(now):", "for worker in []:"),
    Bug("hung workers stay", "scheduler.py", "for worker in state.pool.find_hung(now):", "for worker in []:"),
    Bug("deadlines are forgotten", "outcomes.py", "for request in state.ledger.pop_expired(now):", "for request in []:"),
    Bug("only requests of one input expire", "ledger.py", "and request.deadline == deadline:", "and request.deadline == deadline and request.inputs == 1:"),
    Bug("cancelled jobs are dispatched", "outcomes.py", "    state.models[request.model].queue.discard(request)\n", ""),
    Bug("cancelled rows are sent", "result_split.py", "still_open = [row for row in owned if row[0].is_open]", "still_open = owned"),
    Bug("rows shift behind a failed job", "result_split.py", "range(len(lease.jobs)) if position not in failed]", "range(len(lease.jobs))]"),
    Bug("rows of any size are served", "result_split.py", "return expected == wire.unpack_u32(result.sizes).tolist()", "return True"),
    Bug("vectors are served for token ids", "result_split.py", "return not lease.tokenizes", "return True"),
    Bug("rows of other sizes shift", "result_split.py", "return [0, *itertools.accumulate(wire.unpack_u32(result.sizes))]", "pass"),
    Bug("truncated tokens of other jobs are reported", "result_split.py", "truncated[position] for", "truncated[0] for"),
    Bug("options are those of the first job", "worker.py", "bytes([job.request.options for job in self.jobs])", "bytes([self.jobs[0].request.options for _ in self.jobs])"),
    Bug("tokenizing teaches speed", "outcomes.py", "if position not in failed and not lease.options[position] & TOKENIZE", "if position not in failed"),
    Bug("a key's jobs in flight are not bounded", "admission.py", "if 0 < submission.client_jobs < ledger.holder_jobs[request.client] + request.inputs:", "if False:"),
    Bug("a key's tokens are never taken", "quota.py", "        bucket.level -= tokens\n", ""),
    Bug("a key's estimate is never settled", "quota.py", "            bucket.level += estimated - exact\n", "            pass\n"),
    Bug("silent loaders stay", "scheduler.py", "state.models_changed |= state.loading.drop_expired(now)", "pass"),
    Bug("a worker that serves still loads", "scheduler.py", "        state.loading.finish_loading(hello.uuid, [info.name for info in hello.models])\n", ""),
    Bug("jobs of frontends interleave in a batch", "dispatch.py", "jobs.sort(key=operator.attrgetter(\"key\"))", "jobs.sort(key=lambda job: job.position)"),
    Bug("a worker with other weights joins", "scheduler.py", "if strays and len(strays) == len(hello.models):", "if False:"),
    Bug("a begun request goes on with other weights", "admission.py", "model = state.models[wanted if late else current]", "model = state.models[current]"),
    Bug("an idle worker is passed over", "pool.py", "        if free:\n            return max", "        if len(free) > 1:\n            return max"),
    Bug("a job above the budget waits forever", "client_queue.py", "empty = self._jobs == MAX_BATCH_JOBS", "empty = False"),
    Bug("clients do not take turns", "queues.py", "            elif client.deficit <= 0:\n                self._clients.move_to_end(name)\n", "            client.deficit = max(1, client.deficit)\n"),
    Bug("old jobs do not age", "queues.py", "(WEIGHTS[lane] * (1 + age / AGEING_S))", "WEIGHTS[lane]"),
    Bug("the queue's tokens leak", "queues.py", "        self.tokens += tokens\n", "        self.tokens += abs(tokens)\n"),
    Bug("a batch runs while a suspect runs", "worker.py", "return 0 if self.suspect_model else", "return"),
    Bug("a suspect joins a busy worker", "dispatch.py", "if worker is None or worker.leases:", "if worker is None:"),
    Bug("no worker is kept for a suspect", "dispatch.py", "chosen = (pool.choose_suspect_worker(key, busy) for key in suspected)", "chosen: list[Worker | None] = []"),
    Bug("all workers are kept for suspects", "dispatch.py", "if not pool.is_running_suspect(key)]", "]"),
    Bug("suspects leave no time for others", "pool.py", "if worker.suspects < MAX_SUSPECTS or not any(name in busy for name in worker.models)", "if True"),
    Bug("a late worker is given ever more", "pool.py", "if len(worker.list_leases(lane)) < MAX_HELD and", "if"),
    Bug("only one lane's batch can hang", "pool.py", "if any(now >= lease.since + self.lease_s for lease in worker.list_running())", "if any(now >= lease.since + self.lease_s for lease in worker.list_running()[:1])"),
    Bug("a batch is sent with the wrong lane", "dispatch.py", "Lease(state.newest_batch, model, jobs[0].request.lane, jobs, now)", "Lease(state.newest_batch, model, wire.Lane.BULK, jobs, now)"),
    Bug("interactive jobs wait behind bulk batches", "worker.py", "        return self._lanes[lane]\n", "        return list(self.leases.values())\n"),
    Bug("only the bulk lane's batch is blamed", "worker.py", "leases[0] for lane in Lane if (leases := self.list_leases(lane))", "leases[0] for lane in [Lane.BULK] if (leases := self.list_leases(lane))"),
    Bug("the interactive lane starves the bulk lane", "queues.py", "if len(waiting) > 1 and first > last + ahead / WEIGHTS[Lane.INTERACTIVE]:", "if False:"),
    Bug("an empty lane saves its share up", "queues.py", "            lane.served = max(other.served for other in self._lanes.values())\n", "            pass\n"),
    Bug("a batch that was overtaken makes its worker look slow", "worker.py", "                other.overlap += tokens\n", "                pass\n"),
    Bug("a small share is none", "admission.py", "max(1, int(limits.max_jobs * limits.max_client_share))", "int(limits.max_jobs * limits.max_client_share)"),
    Bug("a model is taken for unserved", "models.py", "self.unserved_since is not None and now >=", "self.unserved_since is None or now >="),
    Bug("the bound in bytes is gone", "admission.py", " or ledger.bytes + request.size > limits.max_bytes:\n        return Rejection(ErrorCode.OVERLOADED", ":\n        return Rejection(ErrorCode.OVERLOADED"),
    Bug("the expected wait is not asked", "admission.py", "if wait_s is not None and wait_s > min(limits.max_wait_s, submission.budget_ms / 1000):", "if False:"),
    Bug("unread answers are not counted", "admission.py", "if frontend.unread > state.limits.max_unread_bytes:", "if False:"),
    Bug("a worker killed in its drain is blamed", "eviction.py", "(EvictionReason.SILENT, EvictionReason.CONNECTION_LOST) and not worker.draining", "(EvictionReason.SILENT, EvictionReason.CONNECTION_LOST)"),
    Bug("refused inputs teach speed", "outcomes.py", "if position not in failed and not lease.options[position] & TOKENIZE", "if not lease.options[position] & TOKENIZE"),
    Bug("an input may cost any number of tokens", "jobs.py", "if (tokens := special + int(length * ratio)) < longest else", "if (tokens := special + int(length * ratio)) or True else"),
    Bug("the length of a truncated text costs nothing", "jobs.py", "longest + length // BYTES_PER_TOKEN_TIME", "longest"),
    Bug("returned inputs lose their order", "jobs.py", "bisect.insort(self._returned, position)", "self._returned.append(position)"),
    Bug("inputs of two requests are read as one piece", "dispatch.py", "following.request is not job.request or ", ""),
    Bug("jobs of one request wait once", "metrics.py", "self._waits.observe(labels, now - request.arrived, jobs)", "self._waits.observe(labels, now - request.arrived)"),
    Bug("one client may have everything", "admission.py", "if ledger.jobs and ledger.holder_jobs[request.client] + request.inputs > share:", "if False:"),
    Bug("a repeated submission runs twice", "scheduler.py", "if submission.request in frontend.requests:", "if False:"),
    Bug("a new connection keeps the old session", "scheduler.py", "                self._remove_frontend(old, now)\n", "                pass\n"),
    Bug("frontends are not told of models", "scheduler.py", "        if state.models_changed:", "        if False:"),
    Bug("abandoned requests cost their client nothing", "scheduler.py", "self.state.abandonment.add_jobs(holder, request.open_jobs, now)", "pass"),
    Bug("a client that abandons is locked out", "admission.py", "int(MAX_ABANDONED_SHARE * limit))", "limit)"),
    Bug("nothing abandoned is forgiven", "admission.py", "forgiven = FORGIVEN_SHARE * limit", "forgiven = 0.0"),
    Bug("an address may have everything", "jobs.py", "(client, submission.address) if submission.address else (client,)", "(client,)"),
    Bug("what a frontend ended counts against its client", "scheduler.py", "in wire.unpack_u64(message.abandoned):", "in wire.unpack_u64(message.requests):"),
    Bug("what a client abandoned never fades", "abandonment.py", "math.exp2((since - now) / HALF_LIFE_S)", "1.0"),
    Bug("inputs are looked at before a request is refused", "admission.py", "rejection = _check_counts(state, request, submission, now)\n", "rejection = _check_tokens(state, request, submission, capacity, now)\n        rejection = rejection or _check_counts(state, request, submission, now)\n"),
    Bug("a request leaves in one turn", "client_queue.py", "if self.deficit <= 0 or not room.add_input(", "if not room.add_input("),
    Bug("inputs that returned are counted twice", "jobs.py", "self._next += inputs - returned", "self._next += inputs"),
    Bug("every client is looked at for each request", "holdings.py", "        for digits, (clients, tokens) in self._groups.items():", "        for digits, (clients, tokens) in [(one.bit_length(), (1, one)) for one in self._by_client.values()]:"),
    Bug("all deadlines expire at once", "ledger.py", " and len(expired) < MAX_EXPIRED:", ":"),
    Bug("the story is not bounded", "job_history.py", "while self._size > MAX_BYTES:", "while False:"),
    Bug("ended jobs are remembered with their worker", "blame.py", "{known: [job for job in blamed if job.is_open] for", "{known: blamed for"),
    Bug("known poison is dispatched", "dispatch.py", "if jobs := fail_poison(state, jobs, now):", "if jobs:  # as it is"),
    Bug("a frontend that was not read is forgotten", "scheduler.py", "state.ledger.find_silent(now) if frontends_read else []:", "state.ledger.find_silent(now):"),
    Bug("unanswered requests are not sent again", "frontend/session/session.py", "for pending in self._requests.list_unanswered() if pending.model in new]", "for pending in self._requests.list_unanswered() if pending.model in new and False]"),
    Bug("a broker that forgot a frontend is not greeted again", "frontend/session/session.py", "                self.disconnect(now)\n                return self.connect()\n", "                self.disconnect(now)\n"),
    Bug("malformed answers loop", "frontend/session/session.py", "if pending.malformed >= MAX_MALFORMED", "if False", ("tests/unit/frontend/test_session.py",)),
    Bug("a silent broker is waited for", "frontend/session/session.py", "if self.connected and now >= self._last_message_at + self._liveness_s:", "if False:"),
    Bug("requests wait forever for a broker", "frontend/session/session.py", "self._fail_unserved() if now >= since + self._grace_s else ()", "()"),
    Bug("a worker evicted for an invalid result counts as left", "events.py", "in (EvictionReason.LEFT, EvictionReason.REPLACED)", "in (EvictionReason.LEFT, EvictionReason.REPLACED, EvictionReason.INVALID_RESULT)"),
    Bug("micro-batches count as inputs", "metrics.py", "        self._micro_batches.add(labels, result.micro_batches)", "        self._micro_batches.add(labels, result.micro_batch_inputs)"),
    Bug("series of workers that left stay", "metrics.py", "            family.drop_series(worker.label)\n", "            pass\n"),
    Bug("workers that leave are not counted", "events.py", "            self.metrics.workers_left.add(())\n", "            pass\n"),
    Bug("only silent workers count as evicted", "events.py", "            self.metrics.worker_evictions.add((reason.value,))\n", "            self.metrics.worker_evictions.add((reason.value,), reason == EvictionReason.SILENT)\n"),
    Bug("a drain waits for workers that never come", "state.py", "0.0 if self.draining else self.limits.worker_grace_s", "self.limits.worker_grace_s"),
    Bug("an old failure ends the wait for a restarted worker", "model_loading.py", "if entry.at >= since), \"\")", "), \"\")"),
    Bug("requests wait although loading has failed", "state.py", "return min(grace_s, FAILED_GRACE_S) if self.find_failure(model) else grace_s", "return grace_s"),
    Bug("a model with open jobs is forgotten", "revisions.py", "        if state.ledger.model_requests[key] or state.pool.has_worker(key):\n", "        if state.pool.has_worker(key):\n"),
    Bug("a revoked peer's notice stays", "scheduler.py", "        self.state.models_changed |= self.state.loading.drop_peer(peer)\n", ""),
    Bug("one peer's notices displace all others", "model_loading.py", "self.drop_peer(peer) or before is None", "before is None"),
    Bug("a long budget makes the message malformed", "frontend/session/session.py", "int(min(max(0.0, (pending.deadline - now) * 1000), 2**32 - 1))", "int(max(0.0, (pending.deadline - now) * 1000))"),
    Bug("jobs wait forever for a worker", "scheduler.py", "                fail_unserved(state, model, now)\n", "                pass\n"),
    Bug("a replacement gets no requests", "revisions.py", "        if replaces or succeeds:", "        if succeeds:"),
    Bug("a replacement of an old revision takes over", "revisions.py", " and before[info.name] == state.current[info.name]\n", "\n"),
    Bug("a stray revision takes over", "revisions.py", "(info.key not in state.models and _may_succeed(state, info.key))", "(info.key not in state.models)"),
    Bug("an old revision takes over at once", "revisions.py", "(info.key not in state.models and _may_succeed(state, info.key))", "_may_succeed(state, info.key)"),
    Bug("an old revision is freed under its requests", "revisions.py", "and (not state.ledger.model_requests[key] or _is_free(state, key))", "and True"),
    Bug("an old revision is freed under its batches", "revisions.py", "        and all(lease.model != key for lease in worker.leases.values())\n", ""),
    Bug("an old revision is freed before late requests come", "revisions.py", "LINGER_S = 1.0", "LINGER_S = 0.0"),
    Bug("every worker keeps old revisions", "revisions.py", "    return bool(state.pool.list_kept(key))\n", "    return False\n"),
    Bug("requests wait for a revision that is gone", "outcomes.py", "    return current != model.info.key and state.pool.find_live_model(current) is not None\n", "    return False\n"),
    Bug("a request that starts again is charged twice", "outcomes.py", "        state.quotas.correct_charge(request.client, request.open_tokens, 0)\n", "        pass\n"),
    Bug("a lost revision never gives way", "revisions.py", "        if now >= time:\n            _set_current", "        if False:\n            _set_current"),
    Bug("a lost revision gives way at once", "revisions.py", "since + state.limits.worker_grace_s", "since"),
    Bug("a removed model takes requests", "revisions.py", "            state.removed.add(key.name)\n", "            pass\n"),
    Bug("a removed model never returns", "revisions.py", "    state.removed -= {info.name for info in infos if state.current[info.name] == info.key}\n", ""),
    Bug("a model of one worker is removed everywhere", "revisions.py", "and state.pool.find_live_model(key) is None:", "and True:"),
    Bug("an unloaded model gets batches", "pool.py", "[worker for worker in self.list_ready(model) if worker.models[model].loaded]", "self.list_ready(model)"),
    Bug("an unloaded model is not loaded", "revisions.py", "            state.outbox.put(worker.peer, wire.Load(key.name, key.revision))\n", "            pass\n"),
    Bug("every worker is asked to load", "revisions.py", "if loaded_speed * LOAD_WAIT_S < model.queue.tokens or not loaded_speed:", "if True:"),
    Bug("a busy model stays on one worker", "revisions.py", "if loaded_speed * LOAD_WAIT_S < model.queue.tokens or not loaded_speed:", "if not loaded_speed:"),
    Bug("all models of a worker have one speed", "worker.py", "Throughput(info.tokens_per_s or self._tokens_per_s, batch_tokens)", "Throughput(self._tokens_per_s, batch_tokens)"),
    Bug("another model's tokens teach speed", "worker.py", "if tokens and not lease.overlap_s and (", "if tokens and ("),
    Bug("a released model gets a batch", "workers/session/session.py", "            if number <= until and only in (None, key):", "            if only in (None, key):"),
    Bug("a new session keeps old models", "workers/session/session.py", "                self._release_models(self._greeted_changes)\n", ""),
    Bug("a damaged version is loaded again and again", "workers/session/catalog.py", "if self.wanted is None or self.wanted == self.failed:", "if self.wanted is None:"),
    Bug("a damaged version ends the old one", "workers/session/catalog.py", "            if not entry.in_memory:\n", "            if True:\n"),
    Bug("a stale version is served", "workers/session/catalog.py", "(entry.wanted is not None and entry.wanted != version)", "False"),
    Bug("a busy model is unloaded", "workers/session/catalog.py", "            if entry.info.key in busy:\n                entry.used_at = now\n            elif", "            if"),
    Bug("bulk inputs take the spare stream", "workers/engine/pipeline.py", "if not item.is_interactive:\n            return []", "if False:\n            return []", ("tests/unit/workers/test_pipeline.py",)),
    Bug("a busy spare thread holds up another model", "workers/engine/pipeline.py", "if self._spare_waits and self._list_interactive(item):", "if self._list_interactive(item):", ("tests/unit/workers/test_pipeline.py",)),
    Bug("interactive inputs leave the spare stream idle", "workers/engine/pipeline.py", "if self._spare_waits and self._list_interactive(item):", "if False:", ("tests/unit/workers/test_pipeline.py",)),
    Bug("a spare inference slows interactive ones", "workers/engine/pipeline.py", "if not all(running.is_interactive for running in self._running.copy()):", "if True:", ("tests/unit/workers/test_pipeline.py",)),
    Bug("an inference on all CPUs delays others", "workers/engine/pipeline.py", "if item.is_whole_batch and not self._running:", "if item.is_whole_batch:", ("tests/unit/workers/test_pipeline.py",)),
    Bug("a slower stream on all CPUs is kept", "workers/engine/engine.py", "if gain >= MIN_GAIN:", "if gain:", ("tests/unit/workers/test_spare_stream.py",)),
    Bug("the pipeline ends while a stream opens", "workers/engine/pipeline.py", "*self._inferring, *self._opening)", "*self._inferring)", ("tests/unit/workers/test_pipeline.py",)),
    Bug("slow inferences lower the costs", "workers/engine/cost_watch.py", "part if part < TOO_HIGH else None", "part", ("tests/unit/workers/test_cost_watch.py",)),
    Bug("refused workers knock at once", "workers/session/session.py", "self._next_heartbeat = now + self._pause_s", "self._next_heartbeat = now + self._heartbeat_s", ("tests/unit/workers/test_session.py",)),
    Bug("locks of running workers are removed", "workers/engine/cpus.py", "            if None not in locked:\n", "            if True:\n", ("tests/unit/workers/test_cpus.py",)),
    Bug("files of running workers are removed", "workers/models/cache.py", "self._file, fcntl.LOCK_SH | fcntl.LOCK_NB", "self._file, fcntl.LOCK_UN", ("tests/unit/workers/test_model_cache.py",)),
    Bug("workers claim the same part", "workers/engine/cpus.py", "fcntl.LOCK_EX | fcntl.LOCK_NB", "fcntl.LOCK_SH | fcntl.LOCK_NB", ("tests/unit/workers/test_cpus.py",)),
    Bug("a quota of each worker is divided", "workers/engine/cpus.py", "_sharers = parts if share_quota else 1", "_sharers = parts", ("tests/unit/workers/test_cpus.py",)),
    Bug("workers under a quota run on the first CPUs", "workers/engine/cpus.py", "if parts == 1 or count_cpus(root) < len(part):", "if parts == 1:", ("tests/unit/workers/test_cpus.py",)),
    Bug("parts leave out CPUs", "workers/engine/cpus.py", "number * size + min(number, larger)", "number * size", ("tests/unit/workers/test_cpus.py",)),
    Bug("a reload waits for lost workers", "reloads.py", "if not reload.waiting & connected]", "if not reload.waiting]"),
    Bug("rows of an old revision are kept", "frontend/session/pending.py", "            self.model_info = model\n            self.clear_rows()\n", "            self.model_info = model\n"),
    Bug("late rows of an old revision count", "frontend/session/pending.py", "if pending is None or pending.submission.revision not in (\"\", answers.revision):", "if pending is None:"),
    Bug("a replaced request fails", "frontend/session/session.py", "if failure.code != ErrorCode.REPLACED or not self._resubmit(self._requests.find(failure.request))", "if True"),
    Bug("padding is free", "workers/engine/micro_batches.py", "        tokens = count * longest if pads else sums[end] - sums[first]", "        tokens = sums[end] - sums[first]", ("tests/unit/workers/test_micro_batches.py",)),
    Bug("attention is free", "workers/engine/micro_batches.py", " + pair_ms * count * longest * longest\n", "\n", ("tests/unit/workers/test_micro_batches.py",)),
    Bug("an inference is free", "workers/engine/micro_batches.py", "        return inference_ms + token_ms * tokens +", "        return token_ms * tokens +", ("tests/unit/workers/test_micro_batches.py",)),
    Bug("micro-batches have no limit", "workers/engine/micro_batches.py", "if duration > limit_ms and last > first + 1:", "if False:", ("tests/unit/workers/test_micro_batches.py",)),
    Bug("a row beyond the limit is lost", "workers/engine/micro_batches.py", "if duration > limit_ms and last > first + 1:", "if duration > limit_ms:", ("tests/unit/workers/test_micro_batches.py",)),
    Bug("short rows run first", "workers/engine/micro_batches.py", "key=lengths.__getitem__, reverse=True)", "key=lengths.__getitem__)", ("tests/unit/workers/test_micro_batches.py",)),
    Bug("the first cut is taken", "workers/engine/micro_batches.py", "if best[first] + duration < best[last]:", "if best[last] == float(\"inf\"):", ("tests/unit/workers/test_micro_batches.py",)),
    Bug("few rows run on one stream", "workers/engine/micro_batches.py", "    if streams > 1 and predict_ms", "    if False and predict_ms", ("tests/unit/workers/test_micro_batches.py",)),
    Bug("a stream's share is one row", "workers/engine/micro_batches.py", "if parts <= streams else", "if parts <= count else", ("tests/unit/workers/test_micro_batches.py",)),
    Bug("pieces are longer than the limit", "workers/engine/micro_batches.py", "min(sum(durations) / MAX_PIECES, limit_ms / MIN_PIECES)", "sum(durations) / 2", ("tests/unit/workers/test_micro_batches.py",)),
    Bug("the speed counts one row", "workers/engine/micro_batches.py", "1000 * rows * length /", "1000 * length /", ("tests/unit/workers/test_micro_batches.py",)),
    Bug("noise gives negative costs", "workers/engine/calibration.py", "if found.min() >= 0 and (found[1] > 0", "if (found[1] > 0", ("tests/unit/workers/test_calibration.py",)),
    Bug("large inferences alone count", "workers/engine/calibration.py", " / measured[:, None]\n", "\n", ("tests/unit/workers/test_calibration.py",)),
    Bug("a slow model is calibrated for minutes", "workers/engine/calibration.py", " + expected_s > BUDGET_S:", " > 3600:", ("tests/unit/workers/test_calibration.py",)),
    Bug("costs of a busy device stay", "workers/engine/calibration.py", "if not expected_ms / FASTER < ", "if not 0 < ", ("tests/unit/workers/test_calibration.py",)),
    Bug("tokens are free after noise", "workers/engine/calibration.py", "    token_ms = max(token_ms, ", "    token_ms = (token_ms or ", ("tests/unit/workers/test_calibration.py",)),
    Bug("a slow model is measured without batches", "workers/engine/calibration.py", "if (rows, length) not in needed:", "if len(samples) > 1:", ("tests/unit/workers/test_calibration.py",)),
    Bug("costs are confirmed by one row", "workers/engine/calibration.py", "CHECKED_SHAPES = ((1, 32), (4, 32))", "CHECKED_SHAPES = ((1, 32),)", ("tests/unit/workers/test_calibration.py",)),
    Bug("a busy moment counts for the costs", "workers/engine/calibration.py", "[len(durations) // 4]", "[-1]", ("tests/unit/workers/test_calibration.py",)),
    Bug("slow inferences run one row", "workers/engine/micro_batches.py", "max(LIMIT_MS, LIMIT_INFERENCES * self.inference_ms)", "LIMIT_MS", ("tests/unit/workers/test_micro_batches.py",)),
    Bug("shares of streams are searched from zero", "workers/engine/micro_batches.py", "low, high = predict_ms(0, 1), predict_ms(0, count)\n    if count <= streams:", "low, high = 0.0, predict_ms(0, count)\n    if False:", ("tests/unit/workers/test_micro_batches.py",)),
    Bug("damaged costs are used", "workers/engine/stored_costs.py", "all(0 <= value <= MAX_MS for value in values) and costs.token_ms >= MIN_TOKEN_MS", "True", ("tests/unit/workers/test_calibration.py",)),
    Bug("costs of other streams are used", "workers/engine/stored_costs.py", "    \"NUM_STREAMS\",\n", "", ("tests/unit/workers/test_calibration.py",)),
    Bug("sizes are not rounded", "workers/engine/feeds.py", "step = 1 << max(0, number.bit_length() - 6)", "step = 1", ("tests/unit/workers/test_feeds.py",)),
    Bug("equal values have different ranks", "scripts/accuracy_scores.py", "(ends - (count - 1) / 2)[place]", "ends[place]", ("tests/unit/test_accuracy.py",)),
    Bug("recall counts documents that are not relevant", "scripts/accuracy_scores.py", "for document, grade in grades[query].items() if grade >= relevant}", "for document in grades[query]}", ("tests/unit/test_accuracy.py",)),
    Bug("the farthest of the found documents comes first", "scripts/accuracy_scores.py", "np.argsort(-cosines[nearest], ", "np.argsort(cosines[nearest], ", ("tests/unit/test_accuracy.py",)),
    Bug("queries without an answer count", "scripts/accuracy_data.py", "for query, known in grades.items() if max(known.values()) >= relevant}", "for query, known in grades.items()}", ("tests/unit/test_accuracy.py",)),
    Bug("texts of the bench repeat", "scripts/bench_texts.py", "if text not in seen]", "]", ("tests/unit/test_bench.py",)),
    Bug("texts of the bench that are too long are sent", "scripts/bench_texts.py", "candidates, lengths, strict=True) if tokens <= max_tokens]", "candidates, lengths, strict=True)]", ("tests/unit/test_bench.py",)),
    Bug("the ramp counts for the rate", "scripts/bench_load.py", "cut = start + RAMP * (times[-1] - start)", "cut = start", ("tests/unit/test_bench.py",)),
    Bug("percentiles ignore how often a value occurred", "scripts/bench_load.py", "sums.append(counts[value] + ", "sums.append(1 + ", ("tests/unit/test_bench.py",)),
    Bug("wrk's corrections stay", "scripts/bench_load.py", "counts[value + interval] if value > interval else 0", "0", ("tests/unit/test_bench.py",)),
    Bug("ratios compare with no row", "scripts/bench_results.py", "if cell.row == BASE), 0.0)", "if cell.row != BASE), 0.0)", ("tests/unit/test_bench.py",)),
    Bug("rounds of another machine are merged", "scripts/bench_results.py", "old is None or old.facts != new.facts", "old is None", ("tests/unit/test_bench.py",)),
    Bug("a torn record of a journal counts", "scripts/embed_plan.py", "if len(payload) < length or zlib.crc32(payload) != checksum:", "if len(payload) < length:", ("tests/unit/test_embed_plan.py",)),
    Bug("a changed input resumes an output", "scripts/embed_plan.py", "        if source != now[path]:", "        if False:", ("tests/unit/test_embed_plan.py",)),
    Bug("another revision resumes an output", "scripts/embed_plan.py", "if old.revision != new.revision:", "if False:", ("tests/unit/test_embed_plan.py",)),
    Bug("dropped rows shift the vectors of others", "scripts/embed_plan.py", "* size] for number in kept)", "* size] for number in range(len(kept)))", ("tests/unit/test_embed_plan.py",)),
    Bug("a full server is not relieved", "scripts/embed_pace.py", "self.limit = max(1, self.limit // 2)", "self.limit = max(1, self.limit)", ("tests/unit/test_embed_plan.py",)),
    Bug("a body may have another encoding", "frontend/batches/lines.py", "    if position < 0 and not content.isascii():", "    if False:", ("tests/unit/frontend/test_batch_lines.py",)),
    Bug("a custom_id may repeat", "frontend/batches/validation.py", "        if digest in self._seen:", "        if False:", ("tests/unit/frontend/test_batch_validation.py",)),
    Bug("inputs of a batch are not bounded", "frontend/batches/validation.py", "        self.inputs += _count_inputs(fields.get(\"input\"))", "        self.inputs += 1", ("tests/unit/frontend/test_batch_validation.py",)),
    Bug("a batch's pace never grows", "frontend/batches/pace.py", "            self._window = min(MAX_INPUTS, self._window + inputs)", "            pass", ("tests/unit/frontend/test_batch_pace.py",)),
    Bug("a refused batch pushes on", "frontend/batches/pace.py", "return now >= self.paused_until and (", "return (", ("tests/unit/frontend/test_batch_pace.py",)),
    Bug("a refused line is lost", "frontend/batches/sending.py", "        heapq.heappush(self._waiting, (part.lines[index].number, part, index))\n        if str", "        part.settle(index, None)\n        if str", ("tests/unit/frontend/test_batch_runs.py",)),
    Bug("a batch mixes revisions", "frontend/batches/answering.py", "        if revision != self._revision:", "        if False:", ("tests/unit/frontend/test_batch_runs.py",)),
    Bug("a chunk is committed without its lease", "frontend/batches/statements.py", "SET holder = holder WHERE id = ? AND holder = ? AND", "SET holder = holder WHERE id = ? AND ? <> '' AND", ("tests/unit/frontend/test_batch_runs.py",)),
    Bug("a continued batch begins at its first line", "frontend/batches/batch_run.py", "offset, lines, part_lines = last.input_offset_end, last.end_line, FIRST_PART_LINES", "offset, lines, part_lines = 0, 0, FIRST_PART_LINES", ("tests/unit/frontend/test_batch_runs.py",)),
    Bug("lines after a gap are committed", "frontend/batches/batch_run.py", "                if not skipped:\n                    break\n", "                if not skipped:\n                    continue\n", ("tests/unit/frontend/test_batch_runs.py",)),
]  # fmt: skip
#: Tests of the cache and of coalescing.
CACHE_TESTS = tuple(
    f"tests/unit/broker/test_{name}.py" for name in ("result_cache", "scheduler_cache", "scheduler_coalescing")
)
BUGS += [
    Bug(
        "results are shared by all keys",
        "admission.py",
        'scope = "" if shared else submission.client or self._frontend.uuid',
        'scope = ""',
        CACHE_TESTS,
    ),
    Bug(
        "keys of a message are those of its first request",
        "admission.py",
        "wanted = (model, submission.kind, submission.options, scope, looks_up)",
        "wanted = (model, submission.kind, 0, scope, looks_up)",
        CACHE_TESTS,
    ),
    Bug("options do not change the vector", "input_keys.py", "bytes([kind, options])", "bytes([kind, 0])", CACHE_TESTS),
    Bug("a revision does not change the vector", "input_keys.py", "model.revision.encode()", 'b""', CACHE_TESTS),
    Bug(
        "the cache grows without a bound",
        "result_cache.py",
        "        while self.bytes > self.max_bytes:",
        "        while False:",
        CACHE_TESTS,
    ),
    Bug(
        "the newest result leaves first",
        "result_cache.py",
        "            self._rows.move_to_end(key)\n",
        "            pass\n",
        CACHE_TESTS,
    ),
    Bug("NaN is stored", "result_cache.py", " or not is_surely_finite(row.vector):", ":", CACHE_TESTS),
    Bug("the result of a suspect is stored", "coalescing.py", "return 0 if job.suspect else", "return", CACHE_TESTS),
    Bug(
        "an interactive job waits for a bulk batch",
        "coalescing.py",
        "return leader is not None and leader.request.lane <= lane",
        "return leader is not None",
        CACHE_TESTS,
    ),
    Bug(
        "followers of a job that returns are forgotten",
        "coalescing.py",
        "                self._settle(job.input_key)\n",
        "                self.followers.pop(job.input_key, None)\n",
        CACHE_TESTS,
    ),
    Bug(
        "followers of a failed job wait forever",
        "coalescing.py",
        "            self._settle(job.input_key, failure=(code, text))\n",
        "            pass\n",
        CACHE_TESTS,
    ),
    Bug(
        "a cancelled follower takes over",
        "coalescing.py",
        "while followers and not followers[0].is_open:",
        "while False:",
        CACHE_TESTS,
    ),
    Bug(
        "a cancelled leader takes its followers along",
        "outcomes.py",
        "    hand_over(state, request.model, jobs)\n",
        "",
        CACHE_TESTS,
    ),
    Bug(
        "a successor is no suspect",
        "outcomes.py",
        "successor.suspect, successor.errors = leader.suspect, leader.errors",
        "successor.errors = leader.errors",
        CACHE_TESTS,
    ),
    Bug(
        "all inputs are looked up in one call",
        "reuse.py",
        "            while left > 0 and (request",
        "            while (request",
        CACHE_TESTS,
    ),
    Bug(
        "what was left waits for a message",
        "reuse.py",
        "        if left <= 0:\n            state.coalescing.due = now\n",
        "",
        CACHE_TESTS,
    ),
    Bug(
        "hits count against the quota",
        "reuse.py",
        "            state.quotas.correct_charge(request.client, sum(job.tokens for job in jobs), 0)\n",
        "",
        CACHE_TESTS,
    ),
    Bug(
        "no-cache gets stored results", "reuse.py", "        if keys.looks_up and (row", "        if (row", CACHE_TESTS
    ),
    Bug(
        "all followers are settled in one call",
        "reuse.py",
        "range(min(left, len(settlement.jobs)))",
        "range(len(settlement.jobs))",
        CACHE_TESTS,
    ),
]
FILES, ROWS = "frontend/api/file_requests.py", "frontend/batches/rows.py"
FILE_TESTS, ROW_TESTS = ("tests/unit/frontend/test_file_requests.py",), ("tests/unit/frontend/test_batch_rows.py",)
BUGS += [
    Bug("a range loses its last byte", FILES, "min(size, int(last) + 1)", "min(size, int(last))", FILE_TESTS),
    Bug("a suffix range is longer than the file", FILES, "max(0, size - int(last)), size", "size - int(last), size", FILE_TESTS),
    Bug("a range beyond the file is empty", FILES, "    if begin >= end:\n", "    if begin > end:\n", FILE_TESTS),
    Bug("inputs of batches never expire", FILES, 'MAX_EXPIRY_S if purpose == "batch" else None', "None", FILE_TESTS),
    Bug("names of files have folders", FILES, 'name.replace("\\\\", "/").rpartition("/")[2]', "name", FILE_TESTS),
    Bug("a window has no limit", FILES, "if not 0 < seconds <= MAX_EXPIRY_S:", "if not seconds:", FILE_TESTS),
    Bug("weak tags never match", FILES, '.removeprefix("W/")', "", FILE_TESTS),
    Bug("ids are in no order", ROWS, "{time_ns:016x}{random.hex()}", "{random.hex()}{time_ns:016x}", ROW_TESTS),
    Bug("a deferral never grows", "frontend/batches/pace.py", "min(MAX_DEFERRAL_S, 2 * last_s)", "FIRST_DEFERRAL_S", ("tests/unit/frontend/test_batch_pace.py",)),
    Bug("a batch that waits is claimed first", "frontend/batches/database.py", "ORDER BY lease_until, id LIMIT 1", "ORDER BY id LIMIT 1", ("tests/integration/test_database.py",)),
    Bug("a typing error of a model waits for ever", "frontend/batches/model_search.py", "name in served or (", "True or (", ("tests/unit/frontend/test_batch_runs.py",)),
    Bug("a lost input is waited for", "frontend/batches/leased_batch.py", " or isinstance(error, MissingContentError)", "", ("tests/unit/frontend/test_batch_runs.py",)),
    Bug("a killed runner forgets the expiry", "frontend/batches/batch_run.py", "            skipped=skipped,\n", "", ("tests/unit/frontend/test_batch_runs.py",)),
    Bug("a shorter stdin ends the output", "scripts/embed_store.py", "if saved and max(saved) >= parts:", "if False:", ("tests/unit/test_embed_files.py",)),
    Bug("a complete output accepts any stdin", "scripts/embed.py", "if digests[number : number + 1] != [part.digest()]:", "if False:", ("tests/unit/test_embed_files.py",)),
    Bug("a retry mixes texts that were cut", "scripts/embed_store.py", "if retry and not self._has_cut_texts():", "if retry:", ("tests/unit/test_embed_files.py",)),
    Bug("a runner forgets a cancellation", ROWS, 'if current.status == "cancelling" and new.is_open:', "if False:", ROW_TESTS),
    Bug("a runner overwrites the counts", ROWS, "    new.completed, new.failed, new.input_tokens = ", "    _ = ", ROW_TESTS),
    Bug("the search for leftovers removes files of others", ROWS, "    return _KEY.fullmatch(key) is not None", "    return True", ("tests/unit/frontend/test_store.py",)),
    Bug("the file store of another database is used", "frontend/batches/store.py", "identity) != identity:", "identity) != identity and False:", ("tests/unit/frontend/test_store.py",)),
    Bug("gzip is decoded at once", "frontend/rest/incoming_bodies.py", "self._gzip.decompress(part, _STEP_BYTES)", "self._gzip.decompress(part)", ("tests/unit/frontend/test_incoming_bodies.py",)),
    Bug("a client takes all uploads", "frontend/rest/upload_slots.py", "max_open // SHARE", "max_open", ("tests/unit/frontend/test_upload_slots.py",)),
    Bug("ended batches are cancelled", ROWS, "    if batch.is_open and batch.status", "    if batch.status", ROW_TESTS),
]  # fmt: skip
BUGS += [Bug(bug.name, bug.path, bug.right, bug.wrong, bug.arguments) for bug in MODEL_BUGS]


def run_tests(bug: Bug) -> tuple[int, float, str]:
    """Run the tests with the bug planted; return pytest's exit status (1 if a test failed), seconds and output."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="vecmill-mutant-") as name:
        copy = Path(name)
        for folder in ("broker", "docs", "frontend", "scripts", "tests", "workers"):
            shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", copy)
        path = copy / bug.path
        path.write_text(path.read_text().replace(bug.right, bug.wrong))
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "--timeout", "600"]
        # CI would raise the number of examples.
        environment = {name: value for name, value in os.environ.items() if name != "CI"}
        if bug.path.startswith("workers/"):
            # Loading all plugins that are installed takes 3 s of CPU time, longer than most tests of models.
            environment["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
            command += ["-p", "pytest_timeout"]
        command += bug.tests
        done = subprocess.run(
            command, cwd=copy, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
        )
    return done.returncode, time.monotonic() - started, done.stdout


def main() -> None:
    """Plant every bug; exit with status 1 if one is missed, or if the tests fail without a bug."""
    texts = sys.argv[1:]
    is_shard = texts[:1] == ["--shard"]
    bugs = [bug for bug in BUGS if is_shard or all(text in f"{bug.path} {bug.name}" for text in texts)]
    for bug in bugs:
        if (number := (ROOT / bug.path).read_text().count(bug.right)) != 1:
            sys.exit(f"{bug.name}: this text is {number} times in {bug.path}, but must be once: {bug.right}")
    if not bugs:
        sys.exit(f"no planted bug has {texts} in its name or file")
    if is_shard:
        bugs = bugs[int(texts[1]) % SHARDS :: SHARDS]
    for path in dict.fromkeys(bug.path.partition("/")[0] for bug in bugs):
        files = {test for bug in bugs for test in bug.tests if test.startswith("tests/") and bug.path.startswith(path)}
        file = next(bug.path for bug in bugs if bug.path.startswith(path))
        status, _, output = run_tests(Bug("none", file, "", "", tuple(sorted(files))))
        if status != 0:
            sys.exit(f"{output}\npytest ends with status {status} without a planted bug in {path}")
    missed = 0
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        for bug, (status, seconds, _) in zip(bugs, pool.map(run_tests, bugs), strict=True):
            found = status == 1
            missed += not found
            print(f"{'found ' if found else 'MISSED'} {seconds:5.1f} s  {bug.name}", flush=True)
    print(f"{len(bugs) - missed} of {len(bugs)} planted bugs found")
    sys.exit(bool(missed))


if __name__ == "__main__":
    main()
