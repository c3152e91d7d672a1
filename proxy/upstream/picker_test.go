package upstream

import (
	"strings"
	"testing"

	"edge/config"
)

// fleet makes endpoints called a, b, c … with these weights.
func fleet(weights ...int64) []*endpoint {
	var out []*endpoint
	for i, w := range weights {
		c := &checker{}
		c.up.Store(true)
		out = append(out, &endpoint{counters: &counters{}, url: string(rune('a' + i)), weight: w, checker: c})
	}
	return out
}

// turns picks n times and returns the names.
func turns(p picker, endpoints []*endpoint, n int) string {
	var b strings.Builder
	for range n {
		e := p.pick(endpoints, nil)
		e.acquire()
		b.WriteString(e.url)
	}
	return b.String()
}

func TestRoundRobinIsSmooth(t *testing.T) {
	if got, want := turns(newPicker(config.RoundRobin, 3), fleet(5, 1, 1), 14), "aabacaaaabacaa"; got != want {
		t.Errorf("turns %s, want %s", got, want)
	}
}

func TestRoundRobinDividesTheShareOfAnEndpointThatIsDown(t *testing.T) {
	endpoints := fleet(1, 1, 1)
	p := newPicker(config.RoundRobin, 3)
	endpoints[1].checker.up.Store(false)
	if got := turns(p, endpoints, 6); got != "acacac" {
		t.Errorf("turns without b: %s, want acacac", got)
	}
	endpoints[1].checker.up.Store(true)
	if got := turns(p, endpoints, 9); strings.Count(got, "b") != 3 {
		t.Errorf("turns after b came back: %s, want b three times of nine", got)
	}
}

func TestLeastRequestsFollowsLoadPerWeight(t *testing.T) {
	endpoints := fleet(1, 3)
	got := turns(newPicker(config.LeastRequests, 2), endpoints, 8)
	if strings.Count(got, "b") != 6 {
		t.Errorf("turns %s, want b six times of eight", got)
	}
	endpoints[1].release()
	if e := newPicker(config.LeastRequests, 2).pick(endpoints, nil); e.url != "b" {
		t.Errorf("after a reply of b: %s, want b", e.url)
	}
}

func TestLeastRequestsRotatesTies(t *testing.T) {
	endpoints := fleet(1, 1, 1)
	p := newPicker(config.LeastRequests, 3)
	var got strings.Builder
	for range 6 {
		got.WriteString(p.pick(endpoints, nil).url) // and done at once
	}
	if got.String() != "abcabc" {
		t.Errorf("turns %s, want abcabc", &got)
	}
}

func TestPickersPassOverTriedAndDownEndpoints(t *testing.T) {
	for _, balance := range []config.Balance{config.RoundRobin, config.LeastRequests} {
		endpoints := fleet(1, 1, 1)
		endpoints[0].checker.up.Store(false)
		p := newPicker(balance, 3)
		if e := p.pick(endpoints, endpoints[1:2]); e == nil || e.url != "c" {
			t.Errorf("%s: %v, want c", balance, e)
		}
		if e := p.pick(endpoints, endpoints[1:]); e != nil {
			t.Errorf("%s: %s, want none", balance, e.url)
		}
		if e := p.pick(nil, nil); e != nil {
			t.Errorf("%s of an empty pool: %s, want none", balance, e.url)
		}
	}
}

func TestPickDoesNotAllocate(t *testing.T) {
	for _, balance := range []config.Balance{config.RoundRobin, config.LeastRequests} {
		p := &Pool{endpoints: fleet(1, 2, 3, 4), picker: newPicker(balance, 4)}
		if n := testing.AllocsPerRun(100, func() { p.pick(nil).release() }); n != 0 {
			t.Errorf("%s: %v allocations a pick, want 0", balance, n)
		}
	}
}

func BenchmarkPick(b *testing.B) {
	for _, balance := range []config.Balance{config.RoundRobin, config.LeastRequests} {
		b.Run(string(balance), func(b *testing.B) {
			p := &Pool{endpoints: fleet(1, 2, 3, 4, 1, 1, 1, 1), picker: newPicker(balance, 8)}
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					p.pick(nil).release()
				}
			})
		})
	}
}
