package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"edge/config"
	"edge/tlsmgr"
	"edge/tlsmgr/store"
	"edge/tlsmgr/transfer"
	"edge/tlsmgr/vault"
)

// importing is what is brought in.
type importing struct {
	pem         bool
	id          string
	all, dryRun bool
}

// maxPEM bounds the files of an import.
const maxPEM = 1 << 20

func certsImportCommand(g *globals) *cobra.Command {
	var i importing
	cmd := &cobra.Command{
		Use:   "import URL|DIR | --pem CHAIN KEY --id ID",
		Short: "Bring certificates from Caddy's storage or from PEM files",
		Long: "Bring certificates and their private keys from the storage of Caddy, or of another program that is\n" +
			"built on certmagic, or from a pair of PEM files. The source is only read.\n\n" +
			"From Caddy, those are imported that serve a name of the plan, or with --all every one. One that has\n" +
			"all names of a planned certificate and its key type takes its place: then nothing is ordered\n" +
			"until it is due. One that has only some of them serves until edge has ordered what is\n" +
			"planned. Of several the newest is taken, and nothing newer in edge's storage is replaced.\n" +
			"So an import may be repeated, and may run beside a running edge.\n\n" +
			"With --pem the pair is stored under --id: an id of the plan, or any other word for one that the\n" +
			"plan does not want; it is served for its names all the same.\n\n" +
			"Each certificate is reported: imported, kept (what is there is as new), skipped (with the reason)\n" +
			"or failed. Exit 5 means that some failed.",
		Example: "  edge certs import /var/lib/caddy/.local/share/caddy --dry-run\n" +
			"  edge certs import \"s3://caddy/prod?region=eu-west-1\"\n" +
			"  edge certs import --pem fullchain.pem privkey.pem --id example.com",
		Args: func(_ *cobra.Command, args []string) error {
			switch {
			case i.pem && len(args) != 2:
				return fmt.Errorf("--pem takes the chain and the key, not %s", count(len(args), "argument"))
			case i.pem && i.id == "":
				return fmt.Errorf("--pem needs --id (edge certs plan lists the ids)")
			case !i.pem && len(args) != 1:
				return fmt.Errorf("one source is imported, not %d", len(args))
			case !i.pem && i.id != "":
				return fmt.Errorf("--id needs --pem")
			}
			return nil
		},
		RunE: action(func(cmd *cobra.Command, args []string) error {
			return g.certificates(cmd, reads, func(ctx context.Context, cfg *config.Config, m *tlsmgr.Manager) error {
				return i.run(ctx, g, cmd, cfg, m, args)
			})
		}),
	}
	f := cmd.Flags()
	f.BoolVar(&i.pem, "pem", false, "import a chain and a key, two files")
	f.StringVar(&i.id, "id", "", "with --pem: the `id` to store them under")
	f.BoolVar(&i.all, "all", false, "import also what serves no name of the plan")
	f.BoolVar(&i.dryRun, "dry-run", false, "only say what would be done")
	return cmd
}

func (i *importing) run(ctx context.Context, g *globals, cmd *cobra.Command, cfg *config.Config, m *tlsmgr.Manager, args []string) error {
	if _, err := m.Details(ctx); err != nil { // reads where names are
		return err
	}
	o := transfer.Options{Wanted: wanted(cfg, m), All: i.all, DryRun: i.dryRun, Owner: owner(), Logger: g.progress(cmd).logger()}
	v, err := g.openVault(ctx, cmd, cfg, "")
	if err != nil {
		return err
	}
	defer func() { _ = v.Store().Close() }()
	if !i.dryRun {
		if err := v.Store().Probe(ctx); err != nil {
			return err
		}
	}
	report, err := i.bring(ctx, g, cmd, v, o, args)
	if report == nil {
		return err
	}
	if printErr := i.print(g, cmd, report); printErr != nil {
		return printErr
	}
	switch n := report.Count[transfer.Failed]; {
	case err != nil:
		return err
	case n > 0:
		return &failure{exitPartly, fmt.Errorf("%d of %s failed (see above)", n, count(len(report.Entries), "certificate"))}
	}
	return nil
}

// bring imports. What was done before an error stands in the report.
func (i *importing) bring(ctx context.Context, g *globals, cmd *cobra.Command, v *vault.Vault, o transfer.Options, args []string) (*transfer.Report, error) {
	if !i.pem {
		from, err := transfer.Open(ctx, args[0], store.Options{Logger: g.progress(cmd).logger()})
		if err != nil {
			return nil, err
		}
		defer func() { _ = from.Close() }()
		return transfer.Import(ctx, from, v, o)
	}
	chain, err := readPEM(args[0])
	if err != nil {
		return nil, err
	}
	key, err := readPEM(args[1])
	if err != nil {
		return nil, err
	}
	e, err := transfer.ImportPEM(ctx, v, i.id, args[0], chain, key, o)
	return &transfer.Report{Entries: []transfer.Entry{e}, Count: map[transfer.Action]int{e.Action: 1}}, err
}

// wanted is the plan as an import has to know it.
func wanted(cfg *config.Config, m *tlsmgr.Manager) []transfer.Wanted {
	var out []transfer.Wanted
	for _, b := range m.Planned().Bundles {
		w := transfer.Wanted{ID: b.ID, Names: b.Names, KeyType: b.KeyType, Issuer: b.Issuer}
		if i := cfg.Issuers[b.Issuer]; i != nil {
			w.Directory = i.Directory
		}
		out = append(out, w)
	}
	return out
}

func readPEM(name string) ([]byte, error) {
	f, err := os.Open(name) //nolint:gosec // the operator names the file
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	data, err := io.ReadAll(io.LimitReader(f, maxPEM+1))
	if err == nil && len(data) > maxPEM {
		err = fmt.Errorf("%s is larger than %d KiB", name, maxPEM>>10)
	}
	return data, err
}

func (i *importing) print(g *globals, cmd *cobra.Command, r *transfer.Report) error {
	if g.json {
		return printJSON(cmd.OutOrStdout(), r)
	}
	out := cmd.OutOrStdout()
	if len(r.Entries) == 0 {
		fmt.Fprintln(out, "no certificates found (edge looks below certificates/, as Caddy keeps them)")
		return nil
	}
	var rows [][]string
	for _, e := range r.Entries {
		action, expires := string(e.Action), "-"
		if i.dryRun && e.Action == transfer.Imported {
			action = "would import"
		}
		if !e.NotAfter.IsZero() {
			expires = span(time.Until(e.NotAfter))
		}
		rows = append(rows, []string{action, dash(e.ID), expires, dash(strings.Join(e.Names, " ")), e.Source})
	}
	if err := table(out, "RESULT CERTIFICATE EXPIRES NAMES SOURCE", rows); err != nil {
		return err
	}
	for _, e := range r.Entries {
		if e.Reason != "" {
			fmt.Fprintf(out, "%s: %s\n", visible(e.Source), visible(e.Reason))
		}
	}
	return nil
}
