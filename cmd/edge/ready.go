package main

import (
	"context"
	"log/slog"
	"slices"
	"time"

	"edge/admin"
	"edge/tlsmgr"
)

const (
	startGrace  = 60 * time.Second // for all certificates to be there
	loadTimeout = 20 * time.Second // of that, for a first look into storage
)

// phase is how far the life of the process has come. It only grows.
type phase int

const (
	starting phase = iota
	ready
	stopping
)

// enter begins a phase and tells the service manager so. It is false when a
// later one has begun: who stops does not become ready any more.
func (a *app) enter(p phase, states ...string) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.phase > p {
		return false
	}
	a.phase = p
	notify(states...) // under the lock, so that systemd hears it in this order
	return true
}

// tell is notify while edge is ready: a reload at another time is none of the
// service manager's business.
func (a *app) tell(states ...string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.phase == ready {
		notify(states...)
	}
}

// becomeReady says ready once what storage holds is loaded. A first start, which
// finds nothing there, and one that cannot look, wait at most startGrace until no
// certificate is missing; later ones do not let a name that fails hold them up.
func (a *app) becomeReady(ctx context.Context) {
	grace, cancelGrace := context.WithTimeout(ctx, startGrace)
	defer cancelGrace()
	load, cancel := context.WithTimeout(grace, loadTimeout)
	defer cancel()
	if err := a.certs.Load(load); err != nil {
		level := slog.LevelError
		if a.foundSome() { // in the snapshot
			level = slog.LevelWarn
		}
		a.log.LogAttrs(ctx, level, "certificates could not be loaded, trying again", slog.Any("error", err))
	} else if a.foundSome() {
		cancelGrace()
	}
	missing := a.complete(grace)
	if ctx.Err() != nil {
		return
	}
	if len(missing) > 0 {
		a.log.WarnContext(ctx, "names without a certificate", slog.Any("names", missing))
	}
	if !a.enter(ready, "READY=1") {
		return
	}
	a.log.InfoContext(ctx, "ready", slog.Duration("after", time.Since(a.started).Round(time.Millisecond)))
}

// foundSome reports whether storage had a certificate that was obtained before.
func (a *app) foundSome() bool {
	return slices.ContainsFunc(a.certs.Status().Certificates, func(c tlsmgr.CertificateStatus) bool {
		return c.Issuer != "" && c.Serial != ""
	})
}

// complete waits until no certificate is missing and returns those that still
// are at the end of ctx.
func (a *app) complete(ctx context.Context) []string {
	for {
		status := a.certs.Status()
		missing := status.Missing()
		if len(missing) == 0 {
			return nil
		}
		select {
		case <-a.look:
		case <-ctx.Done():
			return missing
		}
	}
}

// readiness says whether to send requests here, and until then what is missing.
func (a *app) readiness() admin.Readiness {
	a.mu.Lock()
	now := a.phase
	a.mu.Unlock()
	switch now {
	case ready:
		return admin.Readiness{Ready: true}
	case stopping:
		return admin.Readiness{Reasons: []string{"stopping"}}
	case starting:
	}
	status := a.certs.Status()
	reasons := []string{"starting"}
	if status.Storage != "" && !status.StorageUp {
		reasons = append(reasons, "storage: not read yet")
	}
	for _, c := range status.Certificates {
		if c.Serial == "" {
			reasons = append(reasons, "certificate "+c.ID+": "+string(c.State))
		}
	}
	return admin.Readiness{Reasons: reasons}
}

// served reports whether there is a certificate to serve under an id.
func (a *app) served(id string) bool {
	return slices.ContainsFunc(a.certs.Status().Certificates, func(c tlsmgr.CertificateStatus) bool {
		return c.ID == id && c.Serial != ""
	})
}

// event tells everybody who wants to know about a step of a certificate, and
// wakes complete when one has been loaded.
func (a *app) event(e tlsmgr.Event) {
	a.telemetry.Event(e)
	a.webhook.Event(e)
	if e.Step == tlsmgr.StepLoaded {
		a.wake()
	}
}

// wake makes complete look again.
func (a *app) wake() {
	select {
	case a.look <- struct{}{}:
	default: // it has not seen the last one yet and will look at both
	}
}
