package tlsmgr

import (
	"context"
	"log/slog"
	"time"
)

// Step is a point in the life of a certificate. The words are stable: they
// appear in logs, in metrics and in the output of edge certs.
type Step string

// The steps, in the order of a certificate's life.
const (
	StepPlanned       Step = "planned"           // the plan changed to want this certificate
	StepWaiting       Step = "waiting_for_other" // another replica holds the lease
	StepAccount       Step = "account"           // the account is loaded or registered
	StepOrder         Step = "order"             // the CA took the order
	StepAuthorization Step = "authorization"     // the CA said what it wants proven
	StepPresent       Step = "dns_present"       // challenge records are added
	StepWait          Step = "dns_wait"          // all authoritative servers show them
	StepValidate      Step = "validate"          // the CA believed them
	StepFinalize      Step = "finalize"          // the CA issued the certificate
	StepStored        Step = "stored"            // the certificate is in the storage
	StepLoaded        Step = "loaded"            // this process serves it
	StepFailed        Step = "failed"            // an attempt failed; Detail says why and when the next one is
	StepQuarantined   Step = "quarantined"       // names are left out for a while, so that the others are issued
	StepReplace       Step = "replace"           // the CA wants the certificate replaced now
	StepRevoked       Step = "revoked"           // the CA revoked it for us
	StepExpiring      Step = "expiring"          // a quarter of the lifetime is left
	StepCritical      Step = "critical"          // a tenth is left
	StepExpired       Step = "expired"           // nothing is left
)

// Event is one step of one certificate.
type Event struct {
	Time        time.Time
	Certificate string // Bundle.ID, or the name of a file certificate
	Step        Step
	Detail      string // for people; never a secret
	Notify      bool   // an operator should hear of it, and this replica is the one to tell
}

// warns reports whether a step is worth a warning.
func (s Step) warns() bool {
	switch s { //nolint:exhaustive // the others are progress
	case StepFailed, StepQuarantined, StepReplace, StepExpiring, StepCritical, StepExpired:
		return true
	default:
		return false
	}
}

// emit tells Options.Events and writes one log line. An order is ten lines every
// few weeks, and the first thing to read when one fails.
func (m *Manager) emit(ctx context.Context, id string, step Step, detail string) {
	m.emitEvent(ctx, Event{Certificate: id, Step: step, Detail: detail})
}

func (m *Manager) emitEvent(ctx context.Context, e Event) {
	level := slog.LevelInfo
	switch {
	case e.Step == StepCritical, e.Step == StepExpired:
		level = slog.LevelError
	case e.Step.warns():
		level = slog.LevelWarn
	}
	m.log.LogAttrs(ctx, level, "certificate", slog.String("step", string(e.Step)), slog.String("certificate", e.Certificate), slog.String("detail", e.Detail))
	if m.options.Events != nil {
		e.Time = time.Now()
		m.options.Events(e)
	}
}
