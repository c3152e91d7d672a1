package meter

import (
	"math/bits"
	"sync/atomic"
	"time"
)

// subBits is how many bits below the leading one are kept: 3% resolution.
const subBits = 5

// Hist is a log-linear histogram of durations. The zero Hist is empty. Many
// goroutines may add to it at once.
type Hist struct {
	n [(64 - subBits) << subBits]atomic.Uint32
}

// Add counts one duration; a negative one counts as zero.
func (h *Hist) Add(d time.Duration) {
	v := int(max(d, 0))
	if v >= 1<<subBits {
		e := bits.Len(uint(v)) - subBits - 1
		v = e<<subBits + v>>e
	}
	h.n[v].Add(1)
}

// Quantile returns the duration below which the fraction q lies, rounded down
// to the resolution; 0 when nothing was added.
func (h *Hist) Quantile(q float64) time.Duration {
	var total, seen float64
	for i := range h.n {
		total += float64(h.n[i].Load())
	}
	for i := range h.n {
		seen += float64(h.n[i].Load())
		if seen == 0 || seen < q*total {
			continue
		}
		if i < 2<<subBits {
			return time.Duration(i)
		}
		e := i>>subBits - 1
		return time.Duration((i - e<<subBits) << e)
	}
	return 0
}
