package admin

import (
	"context"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"edge/config"
	"edge/tlsmgr"
)

// Bounds of what waits to be told.
const (
	maxCalls    = 64        // that wait
	maxTold     = 10_000    // certificates remembered, for what was told and what fails
	sameCall    = time.Hour // in which nothing is told twice about the same certificate
	failingLong = time.Hour // after which a certificate that never came is told of
	lastWords   = 5 * time.Second
)

// Webhook posts what an operator should hear about certificates to
// observability.webhook. These steps are worth a call:
//
//   - expiring, critical and expired, from the replica that is to tell;
//   - quarantined and replace, once an hour for each certificate that is served;
//   - failed, once, when attempts have failed for an hour and no certificate is
//     there to serve. Where one is, expiring says so in time.
//
// A call that is cut off by the end of the process may be made twice.
type Webhook struct {
	options WebhookOptions
	log     *slog.Logger
	host    string
	sender  *sender
	url     atomic.Pointer[string] // nil is none
	queue   chan call

	mu      sync.Mutex
	told    map[told]time.Time
	failing map[string]time.Time // since when, by certificate; zero once it was told
}

// WebhookOptions are what a Webhook needs of the program.
type WebhookOptions struct {
	// Served reports whether there is a certificate to serve under an id. It is
	// called rarely, from one goroutine; nil is never.
	Served  func(id string) bool
	Version string       // of edge
	Logger  *slog.Logger // nil is slog.Default()
}

// told is something that need not be told again soon.
type told struct {
	certificate string
	step        tlsmgr.Step
}

// call is an event on its way.
type call struct {
	event  tlsmgr.Event
	unless bool // a certificate is served
}

// NewWebhook returns a Webhook that knows no URL yet. Nothing is posted until
// Run.
func NewWebhook(o WebhookOptions) *Webhook {
	w := &Webhook{
		options: o, log: o.Logger, sender: newSender(), queue: make(chan call, maxCalls),
		told: map[told]time.Time{}, failing: map[string]time.Time{},
	}
	if w.log == nil {
		w.log = slog.Default()
	}
	w.host, _ = os.Hostname() // "" is as good a name as any
	return w
}

// Prepare reads the URL of cfg. The commit that it returns puts it in force and
// cannot fail; calls that wait go to the new one.
func (w *Webhook) Prepare(cfg *config.Config) (commit func(), err error) {
	url, err := cfg.WebhookURL()
	if err != nil {
		return nil, err
	}
	if url == "" {
		return func() { w.url.Store(nil) }, nil
	}
	return func() { w.url.Store(&url) }, nil
}

// Event takes an event that may be worth a call. It never blocks: when too many
// wait, the event is dropped and a line of the log says so.
func (w *Webhook) Event(e tlsmgr.Event) {
	c, worth := w.judge(e, w.url.Load() != nil)
	if !worth {
		return
	}
	select {
	case w.queue <- c:
	default:
		w.log.LogAttrs(context.Background(), slog.LevelError, "webhook: too many calls wait, one is dropped",
			slog.String("certificate", e.Certificate), slog.String("step", string(e.Step)))
	}
}

// judge decides whether e is worth a call, and on whether there is somebody to
// call. A certificate that was loaded is another one, of which everything may be
// told again.
func (w *Webhook) judge(e tlsmgr.Event, on bool) (c call, worth bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch e.Step { //nolint:exhaustive // the others are progress
	case tlsmgr.StepExpiring, tlsmgr.StepCritical, tlsmgr.StepExpired:
		return call{event: e}, on && e.Notify
	case tlsmgr.StepQuarantined, tlsmgr.StepReplace:
		return call{event: e}, on && w.firstLocked(e)
	case tlsmgr.StepFailed:
		return call{event: e, unless: true}, w.longLocked(e, on)
	case tlsmgr.StepLoaded:
		delete(w.failing, e.Certificate)
		delete(w.told, told{e.Certificate, tlsmgr.StepQuarantined})
		delete(w.told, told{e.Certificate, tlsmgr.StepReplace})
	default:
		return call{event: e}, on && e.Notify && w.firstLocked(e)
	}
	return call{}, false
}

// firstLocked reports whether e has not been told lately.
func (w *Webhook) firstLocked(e tlsmgr.Event) bool {
	key := told{e.Certificate, e.Step}
	if at, ok := w.told[key]; ok && e.Time.Sub(at) < sameCall {
		return false
	}
	if len(w.told) >= maxTold {
		clear(w.told)
	}
	w.told[key] = e.Time
	return true
}

// longLocked reports that attempts for a certificate have failed for long, once if
// there is somebody to call.
func (w *Webhook) longLocked(e tlsmgr.Event, on bool) bool {
	since, known := w.failing[e.Certificate]
	switch {
	case !known && len(w.failing) >= maxTold:
		clear(w.failing)
		fallthrough
	case !known:
		w.failing[e.Certificate] = e.Time
		return false
	case !on, since.IsZero(), e.Time.Sub(since) < failingLong:
		return false
	}
	w.failing[e.Certificate] = time.Time{}
	return true
}

// Run posts what Event took, one at a time, until ctx ends; then it tries what
// still waits once more, for at most five seconds. Call it once. The error is
// always nil.
func (w *Webhook) Run(ctx context.Context) error {
	defer w.sender.close()
	var rest []call
	for ctx.Err() == nil {
		select {
		case c := <-w.queue:
			if !w.post(ctx, c, maxTries) {
				rest = append(rest, c)
			}
		case <-ctx.Done():
		}
	}
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), lastWords)
	defer cancel()
	for len(w.queue) > 0 {
		rest = append(rest, <-w.queue)
	}
	for _, c := range rest {
		w.post(last, c, 1)
	}
	return nil
}

// post delivers one call, or logs what was not delivered; never the URL. It is
// not done with it when ctx has ended before the last try.
func (w *Webhook) post(ctx context.Context, c call, tries int) (done bool) {
	e := c.event
	if c.unless && w.options.Served != nil && w.options.Served(e.Certificate) {
		return true
	}
	about := []slog.Attr{slog.String("certificate", e.Certificate), slog.String("step", string(e.Step))}
	err := w.sender.send(ctx, w.target, newMessage(e, w.host, w.options.Version), tries)
	switch {
	case err == nil:
		w.log.LogAttrs(ctx, slog.LevelDebug, "webhook: done", about...)
	case ctx.Err() != nil && tries > 1:
		return false
	default:
		w.log.LogAttrs(ctx, slog.LevelError, "webhook: not delivered", append(about, slog.String("reason", err.Error()))...)
	}
	return true
}

// target is the URL in force, "" when there is none.
func (w *Webhook) target() string {
	if u := w.url.Load(); u != nil {
		return *u
	}
	return ""
}
