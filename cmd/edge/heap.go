package main

import (
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"sync/atomic"
)

// heapFloor is how far the heap grows before it is collected, however little of
// it is live. A proxy that holds few streams has a live heap of some MiB, and Go
// would collect it dozens of times a second: a tenth of a request's cost.
const heapFloor = 32 << 20

// raiseHeap keeps heapFloor from now on by the GC percentage, which it sets after
// each collection: the default where the live heap is large, more where it is
// small. A $GOGC is left alone, and a memory limit goes before either.
func raiseHeap() {
	if _, set := os.LookupEnv("GOGC"); set {
		return
	}
	new(collections).next()
}

// collections is called after each of them.
type collections struct{ percent atomic.Int64 }

// next has the runtime call it again when what it allocates here was collected.
func (c *collections) next() {
	if p := gcPercent(collected()); c.percent.Swap(int64(p)) != int64(p) {
		debug.SetGCPercent(p)
	}
	type sentinel struct{ c *collections } // holds a pointer, so that it is no tiny object that shares its block
	runtime.SetFinalizer(&sentinel{c}, func(s *sentinel) { s.c.next() })
}

// collected is what the last collection found: the bytes of the heap in use, and
// those of stacks and variables, which count for the pace of the next.
func collected() (live, roots uint64) {
	samples := []metrics.Sample{{Name: "/gc/heap/live:bytes"}, {Name: "/gc/scan/stack:bytes"}, {Name: "/gc/scan/globals:bytes"}}
	metrics.Read(samples)
	for i, s := range samples {
		switch {
		case s.Value.Kind() != metrics.KindUint64: // another version of Go: leave its default
			return heapFloor, 0
		case i == 0:
			live = s.Value.Uint64()
		default:
			roots += s.Value.Uint64()
		}
	}
	return live, roots
}

// gcPercent is the growth after which the heap is collected: Go's default where
// it is large, and where it is small what lets it grow to heapFloor. It goes in
// steps, since setting it stops the world for a moment.
func gcPercent(live, roots uint64) int {
	const standard, step, most = 100, 50, 3200
	if live >= heapFloor {
		return standard
	}
	percent := (heapFloor - live) * 100 / max(live+roots, 1)
	return int(max(standard, min(percent/step*step, most)))
}
