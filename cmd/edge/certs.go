package main

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"edge/config"
	"edge/tlsmgr"
)

func certsCommand(g *globals) *cobra.Command {
	cmd := &cobra.Command{
		Use: "certs", Short: "Look at certificates",
		Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() }, // without it, any word is fine
	}
	cmd.AddCommand(
		&cobra.Command{
			Use:   "ls",
			Short: "List the certificates of a running edge",
			Args:  cobra.NoArgs,
			RunE: action(func(cmd *cobra.Command, _ []string) error {
				s, err := g.status(cmd.Context())
				if err != nil {
					return err
				}
				if g.json {
					return printJSON(cmd.OutOrStdout(), s.Certificates)
				}
				return printCertificates(cmd, s.Certificates.Certificates, time.Now())
			}),
		},
		&cobra.Command{
			Use:   "plan",
			Short: "Say which certificates the configuration needs, offline",
			Long:  "Say which certificates the configuration needs and which of them serves each host.\nNothing is contacted; the plan is the same on every replica.",
			Args:  cobra.NoArgs,
			RunE:  action(func(cmd *cobra.Command, _ []string) error { return plan(cmd, g) }),
		},
	)
	return cmd
}

func printCertificates(cmd *cobra.Command, certs []tlsmgr.CertificateStatus, now time.Time) error {
	var rows [][]string
	for _, c := range certs {
		expires := "-"
		if !c.NotAfter.IsZero() {
			expires = span(c.NotAfter.Sub(now))
		}
		rows = append(rows, []string{c.ID, string(c.State), expires, c.Issuer, strings.Join(c.Names, " ")})
	}
	if err := table(cmd.OutOrStdout(), "CERTIFICATE STATE EXPIRES ISSUER NAMES", rows); err != nil {
		return err
	}
	for _, c := range certs {
		if c.Error == "" {
			continue
		}
		next := ""
		if !c.NextAttempt.IsZero() {
			next = fmt.Sprintf("; next attempt in %s", span(c.NextAttempt.Sub(now)))
		}
		fmt.Fprintf(cmd.OutOrStdout(), "%s: %s%s\n", c.ID, c.Error, next)
	}
	return nil
}

func plan(cmd *cobra.Command, g *globals) error {
	cfg, err := config.Load(g.config)
	if err != nil {
		return err
	}
	files, err := tlsmgr.FileNames(cfg)
	if err != nil {
		fmt.Fprintf(cmd.ErrOrStderr(), "warning: %v; planned as if it covered nothing\n", err)
	}
	planned := tlsmgr.Explain(cfg, tlsmgr.Known{Files: files})
	if g.json {
		return printJSON(cmd.OutOrStdout(), planned)
	}
	for _, p := range planned.Problems {
		fmt.Fprintln(cmd.ErrOrStderr(), "warning:", p.Error())
	}
	out := cmd.OutOrStdout()
	var rows [][]string
	for _, b := range planned.Bundles {
		rows = append(rows, []string{b.ID, b.Issuer, string(b.KeyType), fmt.Sprint(len(b.Names)), strings.Join(b.Names, " ")})
	}
	if err := table(out, "CERTIFICATE ISSUER KEY COUNT NAMES", rows); err != nil {
		return err
	}
	fmt.Fprintln(out)
	rows = nil
	for _, c := range planned.Covers {
		host, certificate, name := c.Host, c.Certificate, c.Name
		if host == "" {
			host = "(any)"
		}
		if certificate == "" {
			certificate, name = "-", "-"
		}
		rows = append(rows, []string{host, certificate, name, strings.Join(slices.Compact(c.Routes), " ")})
	}
	return table(out, "HOST CERTIFICATE AS ROUTES", rows)
}
