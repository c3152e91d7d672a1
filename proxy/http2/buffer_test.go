package http2

import (
	"bytes"
	"math/rand/v2"
	"testing"

	"edge/proxy/exchange"
)

func TestBufferGivesBackWhatWasWritten(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	var b buffer
	var want, got []byte
	for range 2000 {
		if random.IntN(2) == 0 {
			p := make([]byte, random.IntN(40<<10))
			for i := range p {
				p[i] = byte(random.IntN(256))
			}
			want = append(want, p...)
			b.write(p)
		} else {
			p := make([]byte, random.IntN(40<<10))
			got = append(got, p[:b.read(p)]...)
		}
		if b.size != len(want)-len(got) {
			t.Fatalf("size %d, want %d", b.size, len(want)-len(got))
		}
	}
	rest := make([]byte, b.size)
	got = append(got, rest[:b.read(rest)]...)
	if !bytes.Equal(got, want) || b.first != nil || b.last != nil {
		t.Error("not what was written")
	}
	b.write([]byte("left"))
	if b.drop(); b.size != 0 || b.first != nil {
		t.Errorf("%d bytes are left", b.size)
	}
}

func TestAnEventAllocatesNothing(t *testing.T) {
	c := &conn{}
	c.granted.init(connWindow)
	s := newStream(c, &exchange.Call{Canceler: new(exchange.Canceler)})
	event, p := make([]byte, 256), make([]byte, 4096)
	if n := testing.AllocsPerRun(200, func() { // 50 KiB: no window opens
		s.push(event)
		if n, err := s.Read(p); n != 256 || err != nil {
			t.Fatal(n, err)
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestGrantOpensByHalves(t *testing.T) {
	var g grant
	g.init(1000)
	if !g.take(1000) || g.take(1) {
		t.Error("the window is not what it should be")
	}
	g.left.Add(1)
	if n := g.giveBack(499); n != 0 {
		t.Errorf("announced %d too early", n)
	}
	if n := g.giveBack(1); n != 500 || g.left.Load() != 500 {
		t.Errorf("announced %d, left %d", n, g.left.Load())
	}
}

func TestAllowanceHasBounds(t *testing.T) {
	a := allowance(10)
	if !a.grow(-100) || a != -90 || fit(5, a, 100, 100) != 0 {
		t.Errorf("below zero: %d", a)
	}
	if !a.grow(maxWindow+90) || a.grow(1) {
		t.Error("the upper bound is not kept")
	}
	if got := fit(50, 40, 30, 20); got != 20 {
		t.Errorf("fit %d", got)
	}
}
