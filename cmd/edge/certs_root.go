package main

import (
	"context"
	"fmt"
	"io"
	"maps"
	"slices"

	"github.com/spf13/cobra"

	"edge/config"
	"edge/tlsmgr"
)

func certsRootCommand(g *globals) *cobra.Command {
	return &cobra.Command{
		Use:   "root [ISSUER]",
		Short: "Print the root certificate of edge's own CA, for clients to trust",
		Long: "Print the root certificate of an internal issuer as PEM, for clients to trust. It is the same on every\n" +
			"replica and stays for ten years; it is made now when nobody needed it before. Without\n" +
			"ISSUER it is the only internal issuer.",
		Example: "  edge certs root > /usr/local/share/ca-certificates/edge.crt && update-ca-certificates\n  edge certs root | curl --cacert /dev/stdin https://box.internal",
		Args:    cobra.MaximumNArgs(1),
		RunE: action(func(cmd *cobra.Command, args []string) error {
			return g.certificates(cmd, reads, func(ctx context.Context, cfg *config.Config, m *tlsmgr.Manager) error {
				name, err := internalIssuer(cfg, args)
				if err != nil {
					return err
				}
				root, err := m.Root(ctx, name)
				if err != nil {
					return err
				}
				if g.json {
					return printJSON(cmd.OutOrStdout(), map[string]string{"issuer": name, "root": root})
				}
				_, err = io.WriteString(cmd.OutOrStdout(), root)
				return err
			})
		}),
	}
}

func internalIssuer(cfg *config.Config, args []string) (string, error) {
	var internal []string
	for _, name := range slices.Sorted(maps.Keys(cfg.Issuers)) {
		if cfg.Issuers[name].Internal != nil {
			internal = append(internal, name)
		}
	}
	switch {
	case len(args) == 1 && slices.Contains(internal, args[0]):
		return args[0], nil
	case len(args) == 1:
		return "", fmt.Errorf("no internal issuer %q (internal issuers: %s)", args[0], orNone(internal))
	case len(internal) == 1:
		return internal[0], nil
	case len(internal) == 0:
		return "", fmt.Errorf("the configuration has no internal issuer (local names get one, or write issuers: {%s: {internal: {}}})", config.InternalIssuer)
	}
	return "", usage("which internal issuer? (" + orNone(internal) + ")")
}

func certsAccountCommand(g *globals) *cobra.Command {
	cmd := &cobra.Command{
		Use: "account", Short: "Change the ACME account of an issuer",
		Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(&cobra.Command{
		Use:   "rollover ISSUER",
		Short: "Give the account of an issuer a new key",
		Long: "Give the ACME account of an issuer a new key (RFC 8555 section 7.3.5), for when the old one may have\n" +
			"leaked, or by rule. The account stays the same one, so CAA and dns-persist-01 records\n" +
			"that name it stay right. Replicas use the new key with their next order. When it is\n" +
			"interrupted, run it again: it goes on where it was.",
		Example: "  edge certs account rollover letsencrypt",
		Args:    cobra.ExactArgs(1),
		RunE: action(func(cmd *cobra.Command, args []string) error {
			return g.certificates(cmd, orders, func(ctx context.Context, _ *config.Config, m *tlsmgr.Manager) error {
				if err := m.Rollover(ctx, args[0]); err != nil {
					return err
				}
				if g.json {
					return printJSON(cmd.OutOrStdout(), map[string]any{"issuer": args[0], "rolled_over": true})
				}
				fmt.Fprintf(cmd.OutOrStdout(), "%s: the account has a new key\n", args[0])
				return nil
			})
		}),
	})
	return cmd
}
