// Package tlsmgr obtains, shares, renews and serves certificates.
//
// A Manager is given the configuration, plans which certificates its routes
// need, orders the missing ones, keeps them in a storage that every replica
// shares, and answers TLS handshakes from memory:
//
//	m := tlsmgr.New(tlsmgr.Options{Logger: log})
//	change, err := m.Prepare(ctx, cfg) // reads files, no network
//	if err != nil { … }
//	change.Commit()
//	if err := m.Load(ctx); err != nil { … } // what the storage has already
//	go m.Run(ctx)                           // orders, renews, reloads until ctx ends
//	listener = tls.NewListener(listener, m.TLSConfig("https"))
//
// A certificate lives like this: names in routes and in certificates become a
// plan (Plan, offline and deterministic), a Bundle of the plan that is missing
// or due is ordered by whichever replica holds its lease, the order is stored
// as one object by compare-and-swap, every replica loads the object, and the
// index hands it to handshakes without a lock, an allocation or any I/O.
//
// What it refuses to do: it never invents a wildcard, never orders a name that
// a written wildcard or a file covers, never overwrites a newer certificate in
// the storage, and never drops a certificate that still serves because
// something else failed.
package tlsmgr

import (
	"context"
	"log/slog"
	"net/http"
	"time"
)

// Options are how a Manager differs from production. The zero value is production.
type Options struct {
	Logger  *slog.Logger // nil is slog.Default()
	Events  func(Event)  // called at each step of a certificate's life, from several goroutines; must not block; nil is none
	Version string       // of edge, for the User-Agent that CAs see; "" is "dev"
	Owner   string       // this process, in leases and stored certificates; "" is host name and process id

	LeaseTTL time.Duration                    // after which the lease of a dead replica is taken over; 0 is the store's default
	Interval time.Duration                    // between two looks at the storage, ±20 %; 0 is 10 s
	Backoff  func(failures int) time.Duration // pause after so many failed attempts in a row (≥ 1); nil is 1 m, 2 m, 5 m, 10 m, 30 m, then 1 h, ±10 %

	// DNSPoll and DNSTimeout replace the rhythm and the patience of the wait for
	// challenge records; 0 is the default of package dns.
	DNSPoll, DNSTimeout time.Duration
	// DNSClient is the HTTP client for DNS providers with an HTTP API; nil is
	// one with timeouts.
	DNSClient *http.Client
	// DNSLease, if not nil, takes the leases that keep replicas apart at a DNS
	// provider, in place of the storage: when that is not the one that other
	// replicas of the same zones use.
	DNSLease func(ctx context.Context, name string) (release func(), err error)
	// ACMEClient is the HTTP client for CAs; nil is one with timeouts that trusts
	// the ca of the issuer.
	ACMEClient *http.Client
}

const (
	defaultInterval  = 10 * time.Second
	attemptTimeout   = 10 * time.Minute // of one order, from the lease to the stored object
	storageTimeout   = 30 * time.Second // of one call to the storage
	cleanupTimeout   = 2 * time.Minute  // to remove challenge records; Route 53 takes 40 s for a hundred names
	askTimeout       = time.Minute      // to ask a CA for renewal information
	snapshotPatience = 5 * time.Second  // with the storage at the start, before the snapshot is served
	leaveTimeout     = 2 * time.Second  // to remove the heartbeat at the end

	everywhereTimeout = 5 * time.Minute // for every live replica to load a new certificate
	maxOrders         = 4               // orders in flight in this process
	maxChores         = 16              // certificates at once that a CA is asked about, or whose records are removed
	maxLoads          = 32              // objects loaded from the storage at once
	maxUnread         = 8               // objects that one look may fail to read before it is the storage that fails
	maxPeers          = 512             // replicas whose heartbeats are read
)
