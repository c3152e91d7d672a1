package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"edge/config"
	"edge/tlsmgr"
)

// The fractions of a lifetime at which certs check speaks, as the events of a
// running edge do.
const (
	expiringAt = 0.25
	criticalAt = 0.10
)

// finding is what certs check complains about.
type finding struct {
	ID     string `json:"id"`
	Level  string `json:"level"` // "warning" or "critical"
	Detail string `json:"detail"`
}

func certsCheckCommand(g *globals) *cobra.Command {
	return &cobra.Command{
		Use:   "check",
		Short: "Say which certificates need a person, for cron",
		Long: "Say which certificates need a person, a line each, and exit 1; say nothing and exit 0 when all\n" +
			"is well. It looks at the storage and at file certificates, not at a running edge.\n\n" +
			"It complains about a certificate that is missing, expired, has less than a quarter of its\n" +
			"lifetime left (edge renews well before), lacks a name, cannot be used, or whose order\n" +
			"fails, and about names in quarantine. Expired, missing, and less than a tenth are critical.",
		Example: "  0 7 * * *  edge certs check -c /etc/edge/routes.yaml   # in a crontab: mail only when something is wrong",
		Args:    cobra.NoArgs,
		RunE: action(func(cmd *cobra.Command, _ []string) error {
			return g.certificates(cmd, reads, func(ctx context.Context, _ *config.Config, m *tlsmgr.Manager) error {
				all, err := m.Details(ctx)
				if err != nil {
					return err
				}
				findings := []finding{}
				for _, d := range all {
					findings = append(findings, judge(d, time.Now())...)
				}
				if g.json {
					if err := printJSON(cmd.OutOrStdout(), findings); err != nil {
						return err
					}
				} else {
					for _, f := range findings {
						fmt.Fprintf(cmd.OutOrStdout(), "%s: %s: %s\n", f.Level, f.ID, f.Detail)
					}
				}
				if len(findings) > 0 {
					return &failure{exitFailure, errSilent}
				}
				return nil
			})
		}),
	}
}

// judge says what is wrong with a certificate. What is stored and not planned
// is nobody's concern.
func judge(d tlsmgr.Detail, now time.Time) []finding {
	if d.Source == "stored" {
		return nil
	}
	var out []finding
	add := func(level, format string, args ...any) {
		out = append(out, finding{d.ID, level, fmt.Sprintf(format, args...)})
	}
	const warning, critical = "warning", "critical"
	if d.Error != "" {
		add(critical, "%s", d.Error)
	}
	switch {
	case d.Serial == "" && d.Error != "": // said
	case d.Serial == "":
		add(critical, "missing")
	case d.Left <= 0:
		add(critical, "expired %s ago", span(now.Sub(d.NotAfter)))
	case d.Left < criticalAt:
		add(critical, "expires in %s, %d %% of its lifetime is left", span(d.NotAfter.Sub(now)), int(d.Left*100))
	case d.Left < expiringAt:
		add(warning, "expires in %s, %d %% of its lifetime is left", span(d.NotAfter.Sub(now)), int(d.Left*100))
	}
	if d.Replace != "" {
		add(warning, "the CA wants it replaced now: %s", d.Replace)
	}
	j := d.Journal
	if j == nil {
		j = &tlsmgr.Journal{}
	}
	if j.Failures > 0 && d.Need != "" {
		add(warning, "the order failed %s: %s", times(j.Failures), j.Error)
	}
	for _, lack := range lacks(d, j) {
		add(warning, "%s", lack)
	}
	return out
}

// lacks says which wanted names a certificate does not have, and why.
func lacks(d tlsmgr.Detail, j *tlsmgr.Journal) []string {
	var out []string
	for _, n := range d.Missing {
		if q, left := j.Quarantine[n]; left {
			out = append(out, n+" is left out: "+q.Reason)
		} else if d.Serial != "" {
			out = append(out, "lacks "+n)
		}
	}
	return out
}
