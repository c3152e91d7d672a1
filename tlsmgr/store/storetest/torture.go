package storetest

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"edge/tlsmgr/store"
)

const (
	contenders   = 8
	acquisitions = 200 // with EDGE_CI=1
	fewer        = 40  // otherwise
	tortureLimit = 60 * time.Second

	// seedEnv repeats the decisions of a run; the machine decides the rest.
	seedEnv = "EDGE_TORTURE_SEED"
)

// round is one way to torture a lease.
type round struct {
	name     string
	ttl      time.Duration
	hold     time.Duration
	mischief int  // one acquisition in so many has its holder killed or paused
	timed    bool // takeovers must be in time
}

// Torture lets processes contend for one lease while their holders are killed
// and paused at random, in the storage that location names. Each acquisition
// commits once, with the version that it read under the lease. Whatever
// happens, no update is lost and no version is replaced twice; and when the
// TTL is one that the machine can keep, an heir is there after at most 1.5 TTL.
//
// It calls the test binary again, whose TestMain calls Contend.
func Torture(t *testing.T, location func(t *testing.T) string) {
	t.Helper()
	for _, r := range []round{
		// The quarter of this TTL that an heir has for its requests is what eight
		// busy processes on two cores need.
		{name: "HeirsAreInTime", ttl: 1200 * time.Millisecond, hold: 40 * time.Millisecond, mischief: 16, timed: true},
		// The least TTL there is: leases lapse under their holders all the time.
		{name: "LeasesLapseAllTheTime", ttl: 50 * time.Millisecond, hold: 60 * time.Millisecond, mischief: 10},
	} {
		t.Run(r.name, func(t *testing.T) { r.run(t, location(t)) })
	}
}

func (r round) run(t *testing.T, rawURL string) {
	t.Helper()
	seed, err := strconv.ParseUint(os.Getenv(seedEnv), 10, 64)
	if err != nil {
		seed = rand.Uint64() //nolint:gosec // any
	}
	n := fewer
	if os.Getenv("EDGE_CI") == "1" {
		n = acquisitions
	}
	a := &arena{
		t: t, round: r, url: rawURL, rng: rand.New(rand.NewPCG(seed, 0)), //nolint:gosec // to be repeated
		events: make(chan event, 1024),
	}
	start := time.Now()
	a.fight(n)
	a.audit()
	t.Logf("%s=%d: %d acquisitions in %s, %d killed, %d paused, %d conflicts; heirs after at most %s",
		seedEnv, seed, n, time.Since(start).Round(time.Millisecond), a.kills, a.pauses, a.count(stepConflict), a.slowest.Round(time.Millisecond))
}

// arena is where contenders meet. Only the test's goroutine uses it.
type arena struct {
	t     *testing.T
	round round
	url   string
	rng   *rand.Rand

	events  chan event // of all contenders
	running sync.WaitGroup
	living  []*contender
	reports []report
	born    int
	kills   int
	pauses  int
	slowest time.Duration
	timers  metronome
	writes  metronome
}

type contender struct {
	cmd   *exec.Cmd
	stdin io.Closer
}

type event struct {
	report
	by *contender
	at time.Time
}

// fight lasts for n acquisitions.
func (a *arena) fight(n int) {
	a.t.Helper()
	s := (&place{url: a.url}).handle(a.t, "metronome")
	a.timers.start(func() { pass(a.t.Context(), beat) })
	defer a.timers.stop()
	a.writes.start(func() {
		if err := s.Store(a.t.Context(), "metronome", nil); err != nil {
			a.t.Errorf("metronome: %v", err)
		}
	})
	defer a.writes.stop()
	defer a.end()
	for range contenders {
		a.spawn()
	}
	timeout := time.NewTimer(tortureLimit)
	defer timeout.Stop()
	plan := a.plan(n)
	var struck time.Time // when the holder was; zero when all are well
	var victim *contender
	for acquired := 0; acquired < n; {
		var e event
		select {
		case e = <-a.events:
			a.note(e.report)
		case <-timeout.C:
			a.t.Fatalf("%d acquisitions after %s, want %d", acquired, tortureLimit, n)
		}
		if e.Step != stepAcquired {
			continue
		}
		acquired++
		if !struck.IsZero() && e.by != victim && e.at.After(struck) {
			a.inherited(e.at.Sub(struck))
			struck = time.Time{}
		}
		if struck.IsZero() && len(plan) > 0 && acquired > plan[0] {
			plan = plan[1:]
			victim = e.by
			struck = a.strike(victim)
		}
	}
}

// plan draws the acquisitions whose holders are struck; the last is needed to
// see the heir of the one before.
func (a *arena) plan(n int) []int {
	chosen := a.rng.Perm(n - 2)[:max(2, n/a.round.mischief)]
	slices.Sort(chosen)
	return chosen
}

// strike kills or pauses a holder, in turns, somewhere in its work.
func (a *arena) strike(victim *contender) time.Time {
	a.t.Helper()
	pass(a.t.Context(), time.Duration(a.rng.Int64N(int64(a.round.hold))))
	a.timers.reset()
	a.writes.reset()
	if a.kills <= a.pauses {
		a.kills++
		a.signal(victim, syscall.SIGKILL)
		now := time.Now()
		a.spawn()
		return now
	}
	a.pauses++
	a.signal(victim, syscall.SIGSTOP)
	now := time.Now()
	pause := a.round.ttl + a.round.ttl/10 + time.Duration(a.rng.Int64N(int64(a.round.ttl)))
	a.running.Go(func() {
		pass(a.t.Context(), pause)
		_ = victim.cmd.Process.Signal(syscall.SIGCONT) // unless it is over
	})
	return now
}

func (a *arena) signal(c *contender, s os.Signal) {
	a.t.Helper()
	if err := c.cmd.Process.Signal(s); err != nil {
		a.t.Errorf("%s: %v", s, err)
	}
}

// inherited checks that an heir came in time. It looks at the lease every 10
// ms, and sees it lapsed 1.25 TTL after the last heartbeat, which was before
// the blow; the quarter that is left of 1.5 TTL is for its requests. On top of
// that comes what the machine, which runs all contenders and the storage on a
// few cores and one disk, made the test itself wait for meanwhile: a timer at
// each of the four times that somebody has to wake up, which are the heir's
// own timer, the replies to its two requests, and the test when it is told; and
// a write twice, since the heir's may be behind another.
func (a *arena) inherited(after time.Duration) {
	a.t.Helper()
	a.slowest = max(a.slowest, after)
	limit := a.round.ttl + a.round.ttl/2
	timer, write := a.timers.worst()-beat, a.writes.worst()
	if a.round.timed && after > limit+4*timer+2*write {
		a.t.Errorf("taken over after %s, want at most %s (timers were late by up to %s, writes took up to %s)", after, limit, timer, write)
	}
}

func (a *arena) spawn() {
	a.t.Helper()
	text, err := json.Marshal(orders{Name: fmt.Sprint("p", a.born), URL: a.url, TTL: a.round.ttl, Hold: a.round.hold})
	must(a.t, err)
	exe, err := os.Executable()
	must(a.t, err)
	a.born++
	c := &contender{cmd: exec.CommandContext(a.t.Context(), exe)} //nolint:gosec // ourselves
	c.cmd.Env = append(os.Environ(), contenderEnv+"="+string(text))
	c.cmd.Stderr = os.Stderr
	stdout, err := c.cmd.StdoutPipe()
	must(a.t, err)
	c.stdin, err = c.cmd.StdinPipe()
	must(a.t, err)
	must(a.t, c.cmd.Start())
	a.living = append(a.living, c)
	a.running.Go(func() {
		for lines := bufio.NewScanner(stdout); lines.Scan(); {
			var r report
			if err := json.Unmarshal(lines.Bytes(), &r); err != nil {
				r = report{Step: stepFailed, Text: lines.Text()}
			}
			a.events <- event{r, c, time.Now()}
		}
		_ = c.cmd.Wait() // "signal: killed"
	})
}

// end kills everybody, also those that are paused, and notes their last words.
func (a *arena) end() {
	for _, c := range a.living {
		_ = c.cmd.Process.Kill() // some are dead
	}
	go func() {
		a.running.Wait()
		close(a.events)
	}()
	for e := range a.events {
		a.note(e.report)
	}
}

func (a *arena) note(r report) {
	if r.Step == stepFailed {
		a.t.Errorf("a contender: %s", r.Text)
	}
	a.reports = append(a.reports, r)
}

func (a *arena) count(step string) (n int) {
	for _, r := range a.reports {
		if r.Step == step {
			n++
		}
	}
	return n
}

// audit compares the journal with what the contenders reported.
func (a *arena) audit() {
	a.t.Helper()
	s := (&place{url: a.url}).handle(a.t, "auditor")
	value, _, err := s.LoadVersion(a.t.Context(), journalKey)
	must(a.t, err)
	var j journal
	must(a.t, json.Unmarshal(value, &j))
	announced, committed := a.commits()
	seen := map[string]bool{}
	lastWords, before := 0, report{}
	for _, id := range j.IDs {
		r, ok := committed[id]
		switch {
		case seen[id]:
			a.t.Errorf("%s stands in the journal twice", id)
		case !ok && !announced[id]:
			a.t.Errorf("%s stands in the journal, but its writer was told of a conflict", id)
		case !ok:
			lastWords++ // it was killed before it could report
		case before.Step != "" && r.From != before.To:
			a.t.Errorf("%s replaced version %q, want %q of %s", id, r.From, before.To, before.ID)
		}
		seen[id], before = true, r
	}
	for id := range committed {
		if !seen[id] {
			a.t.Errorf("the update of %s is lost", id)
		}
	}
	if killed := a.kills + contenders; lastWords > killed {
		a.t.Errorf("%d commits without a report by %d that were killed", lastWords, killed)
	}
	if want := len(committed) + lastWords; j.Count != want || len(j.IDs) != want {
		a.t.Errorf("the journal counts %d and has %d entries, want %d", j.Count, len(j.IDs), want)
	}
}

// commits sorts what was reported: the commits that are known to have
// happened, of which no two replaced one version, and those that may have.
func (a *arena) commits() (announced map[string]bool, committed map[string]report) {
	a.t.Helper()
	announced, committed = map[string]bool{}, map[string]report{}
	replaced := map[store.Version]string{}
	for _, r := range a.reports {
		switch r.Step {
		case stepCommitting:
			announced[r.ID] = true
		case stepConflict:
			delete(announced, r.ID)
		case stepCommitted:
			committed[r.ID] = r
			if other, ok := replaced[r.From]; ok {
				a.t.Errorf("%s and %s both replaced version %q", other, r.ID, r.From)
			}
			replaced[r.From] = r.ID
		}
	}
	return announced, committed
}

// metronome measures, again and again, how long this machine takes for
// something.
type metronome struct {
	begun atomic.Int64 // Unix nanoseconds of what is under way, or 0
	most  atomic.Int64
	quit  chan struct{}
	done  sync.WaitGroup
}

const (
	beat = 5 * time.Millisecond // that timers are asked for
	rest = 10 * time.Millisecond
)

func (m *metronome) start(something func()) {
	m.quit = make(chan struct{})
	m.done.Go(func() {
		for {
			m.begun.Store(time.Now().UnixNano())
			something()
			m.most.Store(int64(m.worst()))
			m.begun.Store(0)
			select {
			case <-m.quit:
				return
			case <-time.After(rest):
			}
		}
	})
}

func (m *metronome) stop() {
	close(m.quit)
	m.done.Wait()
}

func (m *metronome) reset() { m.most.Store(0) }

// worst is the longest since reset, including what is not over yet.
func (m *metronome) worst() time.Duration {
	most := time.Duration(m.most.Load())
	if begun := m.begun.Load(); begun != 0 {
		most = max(most, time.Since(time.Unix(0, begun)))
	}
	return most
}
