package main

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"edge/admin"
)

func statusCommand(g *globals) *cobra.Command {
	ready := false
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show what a running edge is doing",
		Long:  "Show what a running edge is doing: its configuration, listeners and the health of every endpoint.\nWith --ready, print nothing and exit 4 unless it is ready, for health checks.",
		Args:  cobra.NoArgs,
		RunE: action(func(cmd *cobra.Command, _ []string) error {
			s, err := g.status(cmd.Context())
			if err != nil {
				return err
			}
			if ready {
				if !s.Ready {
					return &failure{exitUnreachable, errors.New("not ready")}
				}
				return nil
			}
			if g.json {
				return printJSON(cmd.OutOrStdout(), s)
			}
			return printStatus(cmd, s)
		}),
	}
	cmd.Flags().BoolVar(&ready, "ready", false, "only say by the exit code whether edge is ready")
	return cmd
}

func printStatus(cmd *cobra.Command, s admin.Status) error {
	out := cmd.OutOrStdout()
	state := "ready"
	if !s.Ready {
		state = "not ready"
	}
	fmt.Fprintf(out, "edge %s, pid %d, up %s, %s, %d requests in progress\n", s.Version, s.PID, span(time.Since(s.Started)), state, s.Proxy.Active)
	fmt.Fprintf(out, "%s, loaded %s ago\n", s.Config.Path, span(time.Since(s.Config.Loaded)))
	if s.Config.Refused != "" {
		fmt.Fprintf(out, "the last reload was refused: %s\n", strings.ReplaceAll(s.Config.Refused, "\n", "\n  "))
	}
	fmt.Fprintln(out)
	var listeners [][]string
	for _, l := range s.Proxy.Listeners {
		kind := "tls"
		if l.Redirect {
			kind = "redirect"
		}
		listeners = append(listeners, []string{l.Name, l.Address, kind})
	}
	if err := table(out, "LISTENER ADDRESS KIND", listeners); err != nil {
		return err
	}
	fmt.Fprintln(out)
	var endpoints [][]string
	for _, p := range s.Proxy.Pools {
		for _, e := range p.Endpoints {
			health := "up"
			if !e.Healthy {
				health = "down: " + e.LastError
			}
			endpoints = append(endpoints, []string{p.Name, e.URL, strconv.Itoa(e.Inflight), health})
		}
	}
	return table(out, "POOL ENDPOINT REQUESTS HEALTH", endpoints)
}
