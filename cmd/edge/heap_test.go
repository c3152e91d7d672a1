package main

import (
	"runtime"
	"runtime/debug"
	"testing"
	"time"
)

func TestGCPercentLetsASmallHeapGrowToTheFloorAndNoFurther(t *testing.T) {
	for _, c := range []struct {
		live, roots uint64
		want        int
	}{
		{0, 0, 3200},
		{1 << 20, 0, 3100},
		{4 << 20, 0, 700},
		{4 << 20, 4 << 20, 350},
		{8 << 20, 0, 300},
		{8 << 20, 100 << 20, 100},
		{15 << 20, 0, 100},
		{16 << 20, 0, 100},
		{4 << 30, 0, 100},
	} {
		got := gcPercent(c.live, c.roots)
		if got != c.want {
			t.Errorf("live %d MiB, roots %d MiB: got %d, want %d", c.live>>20, c.roots>>20, got, c.want)
		}
		if goal := c.live + (c.live+c.roots)*uint64(got)/100; got > 100 && goal > heapFloor {
			t.Errorf("live %d MiB: the heap grows to %d MiB", c.live>>20, goal>>20)
		}
	}
}

func TestGOGCIsLeftAlone(t *testing.T) {
	t.Setenv("GOGC", "100")
	const mark = 123
	before := debug.SetGCPercent(mark)
	raiseHeap()
	if got := debug.SetGCPercent(before); got != mark {
		t.Errorf("percentage %d, want %d as it was", got, mark)
	}
}

func TestPercentageIsSetAfterEachCollection(t *testing.T) {
	before := debug.SetGCPercent(100)
	defer debug.SetGCPercent(before)
	var c collections
	c.next()
	for range 3 {
		const stale = -1
		c.percent.Store(stale)
		for deadline := time.Now().Add(30 * time.Second); c.percent.Load() == stale; {
			if time.Now().After(deadline) {
				t.Fatal("no collection was noticed")
			}
			runtime.GC()
			time.Sleep(time.Millisecond)
		}
	}
}
