// Package admin is how people and programs look into a running edge and steer
// it. The control socket is the only place that changes anything; it is a unix
// socket that speaks HTTP, and the command line is its client:
//
//	ln, err := admin.Listen("/run/edge/control.sock")
//	…
//	c := admin.NewControl(admin.Options{Reload: app.Reload, Status: app.Status})
//	go c.Serve(ln)
//
// It is never offered over TCP: whoever may open the socket may reload edge.
//
// Telemetry is what may be asked over TCP, since it changes nothing: health,
// metrics and the status. Webhook tells an operator of certificates in trouble.
// Both are given every configuration by Prepare and Commit, and every event of
// the certificate manager.
package admin

import (
	"context"
	"time"

	"edge/config"
	"edge/proxy"
	"edge/tlsmgr"
)

// Status is what a running edge says of itself, as JSON on /v1/status.
type Status struct {
	Version      string        `json:"version"`
	PID          int           `json:"pid"`
	Started      time.Time     `json:"started"`
	Ready        bool          `json:"ready"`
	Telemetry    string        `json:"telemetry,omitempty"` // address that it is bound to; "" is none
	Config       ConfigStatus  `json:"config"`
	Proxy        proxy.Status  `json:"proxy"`
	Certificates tlsmgr.Status `json:"certificates"`
}

// ConfigStatus says which configuration is in force and how the last reload went.
type ConfigStatus struct {
	Path     string    `json:"path"`
	Loaded   time.Time `json:"loaded"`   // when the one in force was read
	Reloads  int       `json:"reloads"`  // since the start, refused ones included
	Refused  string    `json:"refused"`  // why the last reload was refused; "" after a good one
	Warnings []string  `json:"warnings"` // of the one in force
}

// Reloaded is the answer to a reload. A refused one has Problems, and the last
// good configuration stays in force.
type Reloaded struct {
	Warnings []string `json:"warnings,omitempty"`
	Problems []string `json:"problems,omitempty"`
	Invalid  bool     `json:"invalid,omitempty"` // the file itself is at fault, not the world around it
}

// Options are what a Control needs of the program. Both functions may be
// called concurrently.
type Options struct {
	Reload func(context.Context) Reloaded
	Status func() Status
}

// Texts returns the problems as lines, for a Reloaded or a status.
func Texts(problems []config.Problem) []string {
	out := make([]string, 0, len(problems))
	for _, p := range problems {
		out = append(out, p.Error())
	}
	return out
}
