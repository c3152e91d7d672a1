package meter

import (
	"math/rand/v2"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"testing"
	"time"
)

// slack is how long a busy machine may take to give this test 30 ms of CPU.
const slack = 30 * time.Second

func needLinux(t *testing.T) {
	t.Helper()
	if runtime.GOOS != "linux" {
		t.Skip("reads /proc as Linux has it")
	}
}

func TestTreeHoldsChildrenAndNoOthers(t *testing.T) {
	needLinux(t)
	child := exec.CommandContext(t.Context(), "sleep", "60")
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	defer child.Wait()
	defer child.Process.Kill()
	tree := Tree(os.Getpid())
	if tree[0] != os.Getpid() || !slices.Contains(tree, child.Process.Pid) {
		t.Errorf("tree of %d is %v, want it to hold the child %d", os.Getpid(), tree, child.Process.Pid)
	}
	if slices.Contains(tree, os.Getppid()) {
		t.Errorf("tree of %d is %v, which holds its parent %d", os.Getpid(), tree, os.Getppid())
	}
}

func TestParentIsFoundBehindAnyCommandName(t *testing.T) {
	for stat, want := range map[string]int{
		"7 (sleep) S 3 7 7 0":           3,
		"7 (a) S 9 (b c) R 4 7 7 0":     4,
		"7 (nginx: worker) S 12 7 7 0":  12,
		"7 (x) S":                       -1,
		"":                              -1,
		"7 (no number) S parent 7 7 0)": -1,
	} {
		got, ok := parentOf([]byte(stat))
		if !ok {
			got = -1
		}
		if got != want {
			t.Errorf("parent in %q: got %d, want %d", stat, got, want)
		}
	}
}

func TestCPUGrowsWithWork(t *testing.T) {
	needLinux(t)
	self := []int{os.Getpid()}
	before := cpu(t, self)
	const work = 30 * time.Millisecond
	for deadline := time.Now().Add(slack); cpu(t, self)-before < work; {
		if time.Now().After(deadline) {
			t.Fatalf("%v of CPU time in %v of a busy loop, want %v", cpu(t, self)-before, slack, work)
		}
	}
	if half := cpu(t, append(self, self...)); half < 2*before {
		t.Errorf("two processes used %v, want at least %v", half, 2*before)
	}
}

func TestCPUOfAnEndedProcessIsNothing(t *testing.T) {
	needLinux(t)
	child := exec.CommandContext(t.Context(), "true")
	if err := child.Run(); err != nil {
		t.Fatal(err)
	}
	if used := cpu(t, []int{child.Process.Pid}); used != 0 {
		t.Errorf("got %v, want 0", used)
	}
}

func cpu(t *testing.T, pids []int) time.Duration {
	t.Helper()
	used, err := CPU(pids)
	if err != nil {
		t.Fatal(err)
	}
	return used
}

func TestMemoryGrowsWithTouchedPages(t *testing.T) {
	needLinux(t)
	self := []int{os.Getpid()}
	before := Memory(self)
	const size = 32 << 20
	block := make([]byte, size)
	for i := 0; i < len(block); i += 1 << 10 {
		block[i] = 1
	}
	if grown := Memory(self) - before; grown < size/2 {
		t.Errorf("grew by %d bytes, want about %d", grown, size)
	}
	runtime.KeepAlive(block)
}

func TestSumOfReadsLinesByName(t *testing.T) {
	const status = "Pss:   12 kB\nvoluntary_ctxt_switches:\t7\nnonvoluntary_ctxt_switches:\t5\nPss_Anon: 9 kB\n"
	for _, c := range []struct {
		name, unit string
		want       int64
	}{
		{"Pss:", " kB", 12},
		{"voluntary_ctxt_switches:", "", 7},
		{"nonvoluntary_ctxt_switches:", "", 5},
		{"Swap:", " kB", 0},
	} {
		if got := sumOf([]byte(status), c.name, c.unit); got != c.want {
			t.Errorf("%s got %d, want %d", c.name, got, c.want)
		}
	}
}

func TestQuantilesAreWithinTheResolution(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range 200 {
		var h Hist
		all := make([]time.Duration, 1+rng.IntN(300))
		for i := range all {
			all[i] = time.Duration(rng.Uint64() >> (1 + rng.IntN(62)))
			h.Add(all[i])
		}
		slices.Sort(all)
		for _, q := range []float64{0, .5, .99, 1} {
			rank := max(0, int(q*float64(len(all))+.9999999)-1)
			want, got := all[rank], h.Quantile(q)
			if got > want || float64(want-got) > float64(want)/(1<<subBits) {
				t.Fatalf("quantile %v of %d: got %d, want %d or up to 3%% less", q, len(all), got, want)
			}
		}
	}
}

func TestQuantileOfNothingIsZero(t *testing.T) {
	var h Hist
	if got := h.Quantile(.5); got != 0 {
		t.Errorf("got %v, want 0", got)
	}
	h.Add(-time.Second)
	if got := h.Quantile(1); got != 0 {
		t.Errorf("a negative duration: got %v, want 0", got)
	}
}

func TestMicrosKeepsATenth(t *testing.T) {
	if got := Micros(12345 * time.Nanosecond); got != 12.3 {
		t.Errorf("got %v, want 12.3", got)
	}
}
