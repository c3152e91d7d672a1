package tlsmgr

import (
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"edge/config"
	"edge/hostname"
	"edge/tlsmgr/vault"
)

// Bounds of a budget. It is one object in the storage, of at most 1 MiB.
const (
	maxBudget = 900 << 10 // bytes of JSON, about
	eventSize = len(`"2006-01-02T15:04:05Z",`)

	// maxSkew is how far clocks of replicas may differ. What lies further in the
	// future was written by a clock that was wrong; it counts as of now, or it
	// would count for as long as the clock was ahead.
	maxSkew = time.Hour
)

// reserve enters an order for names into b, or says how long it has to wait and
// for which quota; then b is as good as unchanged. q is what acme.QuotasOf
// returned; a zero quota is none. The caller writes b back before it asks the CA,
// so that replicas that ask at the same time see each other.
//
// Let's Encrypt refills buckets (https://letsencrypt.org/docs/rate-limits/).
// Windows that slide allow as much at once and less in the long run, so what
// they let pass is never refused.
//
// renewal is an order that names the certificate it replaces (RFC 9773 section
// 5). Let's Encrypt exempts those from all its limits (same page, "ARI
// Renewals"), so it never waits, but it is entered: whether other CAs count it is
// their secret.
func reserve(b *vault.Budget, q config.Quotas, names []string, renewal bool, now time.Time) (wait time.Duration, reason string) {
	settle(b, q, now)
	zones, set := registered(names), setOf(names)
	if !renewal {
		if wait, reason = blocked(b, q, names, now); wait > 0 {
			return wait, reason
		}
	}
	b.Orders = enter(b.Orders, q.Orders, now)
	for _, z := range zones {
		enterAs(&b.Domains, z, q.Domain, now)
	}
	enterAs(&b.Sets, set, q.Duplicates, now)
	shed(b)
	return 0, ""
}

// unenter takes back what reserve entered for names at that moment; the order
// itself only when whole.
func unenter(b *vault.Budget, names []string, at time.Time, whole bool) {
	without := func(events []time.Time) []time.Time {
		if n := slices.IndexFunc(events, at.Equal); n >= 0 {
			return slices.Delete(events, n, n+1)
		}
		return events
	}
	if whole {
		b.Orders = without(b.Orders)
	}
	drop := func(events map[string][]time.Time, key string) {
		if times := without(events[key]); len(times) > 0 {
			events[key] = times
		} else {
			delete(events, key)
		}
	}
	for _, z := range registered(names) {
		drop(b.Domains, z)
	}
	drop(b.Sets, setOf(names))
}

// failed enters that the CA could not validate names.
func failed(b *vault.Budget, q config.Quotas, names []string, now time.Time) {
	settle(b, q, now)
	for _, n := range names {
		enterAs(&b.Failed, n, q.Failed, now)
	}
	shed(b)
}

// blocked is the longest wait of all quotas that an order for names counts for.
func blocked(b *vault.Budget, q config.Quotas, names []string, now time.Time) (wait time.Duration, reason string) {
	look := func(events []time.Time, quota config.Quota, key, what string) {
		if !limited(quota) || len(events) < quota.Count {
			return
		}
		free := events[len(events)-quota.Count].Add(quota.Per)
		if left := free.Sub(now); left > wait {
			wait = left
			reason = fmt.Sprintf("%s: all %d in %s are used until %s (limits.%s)",
				what, quota.Count, period(quota.Per), free.UTC().Format(time.RFC3339), key)
		}
	}
	look(b.Orders, q.Orders, "orders", "orders")
	for _, z := range registered(names) {
		look(b.Domains[z], q.Domain, "per_domain", "certificates for the registered domain "+z)
	}
	look(b.Sets[setOf(names)], q.Duplicates, "duplicates", "certificates for exactly these names")
	for _, n := range slices.Sorted(slices.Values(names)) {
		look(b.Failed[n], q.Failed, "failed", "failed validations of "+n)
	}
	return wait, reason
}

func limited(q config.Quota) bool { return !q.Off && q.Count > 0 && q.Per > 0 }

// settle drops what is too old to count and repairs what wrong clocks wrote. An
// event without a quota is left to vault.Sweep.
func settle(b *vault.Budget, q config.Quotas, now time.Time) {
	b.Orders = recent(b.Orders, q.Orders, now)
	recentOf(b.Domains, q.Domain, now)
	recentOf(b.Sets, q.Duplicates, now)
	recentOf(b.Failed, q.Failed, now)
}

func recentOf(events map[string][]time.Time, q config.Quota, now time.Time) {
	maps.DeleteFunc(events, func(key string, times []time.Time) bool {
		events[key] = recent(times, q, now)
		return len(events[key]) == 0
	})
}

func recent(events []time.Time, q config.Quota, now time.Time) []time.Time {
	if !limited(q) {
		return events
	}
	var out []time.Time
	for _, t := range events {
		if t.Sub(now) > maxSkew {
			t = moment(now)
		}
		if now.Sub(t) < q.Per+maxSkew { // it may still count for those whose clocks are right
			out = append(out, t)
		}
	}
	slices.SortFunc(out, time.Time.Compare)
	return out
}

// used are the events that count at now.
func used(events []time.Time, q config.Quota, now time.Time) int {
	n := 0
	for _, t := range events {
		if now.Sub(t) < q.Per {
			n++
		}
	}
	return n
}

// enter adds an event. Only as many as the quota allows are kept: when those are
// over, the next one may come.
func enter(events []time.Time, q config.Quota, now time.Time) []time.Time {
	if !limited(q) {
		return events
	}
	events = append(events, moment(now))
	slices.SortFunc(events, time.Time.Compare)
	return events[max(0, len(events)-q.Count):]
}

func enterAs(events *map[string][]time.Time, key string, q config.Quota, now time.Time) {
	if !limited(q) {
		return
	}
	if *events == nil {
		*events = map[string][]time.Time{}
	}
	(*events)[key] = enter((*events)[key], q, now)
}

// moment is now in whole seconds, which are shorter to write. It is never too
// early, so no window is ever too short.
func moment(now time.Time) time.Time {
	whole := now.Truncate(time.Second).UTC()
	if whole.Before(now) {
		whole = whole.Add(time.Second)
	}
	return whole
}

// shed forgets the oldest events of a budget that is too large to be stored. A
// fleet that gets there orders for more than ten thousand domains in a week; the
// oldest events stop counting first anyway, and the CA still says no.
func shed(b *vault.Budget) {
	for size(b) > maxBudget {
		all := slices.Clone(b.Orders)
		for _, events := range []map[string][]time.Time{b.Domains, b.Sets, b.Failed} {
			for _, times := range events {
				all = append(all, times...)
			}
		}
		if len(all) == 0 {
			return
		}
		slices.SortFunc(all, time.Time.Compare)
		since := all[len(all)/4] // a quarter, so that this is rare
		old := func(t time.Time) bool { return !t.After(since) }
		b.Orders = slices.DeleteFunc(b.Orders, old)
		for _, events := range []map[string][]time.Time{b.Domains, b.Sets, b.Failed} {
			maps.DeleteFunc(events, func(key string, times []time.Time) bool {
				events[key] = slices.DeleteFunc(times, old)
				return len(events[key]) == 0
			})
		}
	}
}

// size is about how long b is as JSON.
func size(b *vault.Budget) int {
	n := len(b.Orders) * eventSize
	for _, events := range []map[string][]time.Time{b.Domains, b.Sets, b.Failed} {
		for key, times := range events {
			n += len(key) + len(`"":[],`) + len(times)*eventSize
		}
	}
	return n
}

// registered are the domains that CAs count by: registrable domains, IPv4
// addresses, and /64 blocks of IPv6 addresses (same page, "New Certificates per
// Registered Domain").
func registered(names []string) []string {
	var out []string
	for _, n := range names {
		zone := hostname.Zone(n)
		if ip, err := netip.ParseAddr(n); err == nil && ip.Is6() {
			zone = netip.PrefixFrom(ip, 64).Masked().String()
		}
		out = append(out, zone)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// setOf is a digest of a set of names. A collision costs a wait, no harm.
func setOf(names []string) string {
	sorted := slices.Compact(slices.Sorted(slices.Values(names)))
	sum := sha256.Sum256([]byte(strings.Join(sorted, "\n")))
	return base64.RawURLEncoding.EncodeToString(sum[:8])
}

// period is d as it is configured: 3h, not 3h0m0s.
func period(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}
