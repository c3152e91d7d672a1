package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"edge/config"
	"edge/tlsmgr"
	"edge/tlsmgr/store"
	"edge/tlsmgr/transfer"
	"edge/tlsmgr/vault"
)

// exporting is how a certificate leaves.
type exporting struct {
	format string
	out    string // directory, storage URL, or "-"
	force  bool
	form   transfer.Form
}

func certsExportCommand(g *globals) *cobra.Command {
	var e exporting
	cmd := &cobra.Command{
		Use:   "export ID|HOST",
		Short: "Write a certificate and its private key for other programs",
		Long: "Write a stored certificate and its private key in a format that other programs read:\n\n" +
			"  pem         ID.crt and ID.key, or with --single ID.pem that has both, key last\n" +
			"  kubernetes  ID.yaml, a Secret of type kubernetes.io/tls\n" +
			"  certmagic   what Caddy finds in its storage, for each of the names\n\n" +
			"Files go below --out, a directory; certmagic's also into a storage, by its URL; \"-\" is\n" +
			"standard output. Files with a private key can be read by their owner only. Nothing is\n" +
			"overwritten without --force. The export is not renewed: it is a copy.",
		Example: "  edge certs export example.com --out /etc/ssl/edge\n" +
			"  edge certs export example.com --format kubernetes --namespace web --out - | kubectl apply -f -\n" +
			"  edge certs export example.com --format certmagic --out /var/lib/caddy",
		Args: cobra.ExactArgs(1),
		RunE: action(func(cmd *cobra.Command, args []string) error {
			var c *vault.Certificate
			err := g.certificates(cmd, reads, func(ctx context.Context, cfg *config.Config, m *tlsmgr.Manager) (err error) {
				c, err = g.stored(ctx, cmd, cfg, m, args[0])
				return err
			})
			if err != nil {
				return err
			}
			return e.run(g, cmd, c)
		}),
	}
	f := cmd.Flags()
	f.StringVar(&e.format, "format", string(transfer.PEM), "pem, kubernetes or certmagic: the `format`")
	f.StringVar(&e.out, "out", ".", "`directory`, storage URL (certmagic), or - for standard output")
	f.BoolVar(&e.force, "force", false, "overwrite what is there")
	f.BoolVar(&e.form.Single, "single", false, "pem: chain and key in one file")
	f.StringVar(&e.form.Name, "name", "", "kubernetes: `name` of the Secret (default: made from the id)")
	f.StringVar(&e.form.Namespace, "namespace", "", "kubernetes: `namespace` of the Secret")
	f.StringVar(&e.form.Directory, "directory", "", "certmagic: `URL` of the ACME directory that Caddy uses (default: where the certificate is from)")
	return cmd
}

// stored reads the certificate that is called what, or that serves the host what.
func (g *globals) stored(ctx context.Context, cmd *cobra.Command, cfg *config.Config, m *tlsmgr.Manager, what string) (*vault.Certificate, error) {
	d, err := find(ctx, m, what)
	switch {
	case err != nil:
		return nil, err
	case d.Source == "file":
		return nil, fmt.Errorf("certificate %q is from files: %s (copy them)", d.ID, cfg.Certificates[d.ID].File.Certificate)
	case d.Error != "":
		return nil, errors.New(d.Error)
	case d.Serial == "":
		return nil, fmt.Errorf("certificate %q is not there yet (edge certs obtain %s)", d.ID, d.ID)
	}
	v, err := g.openVault(ctx, cmd, cfg, "")
	if err != nil {
		return nil, err
	}
	defer func() { _ = v.Store().Close() }()
	c, _, err := vault.Load[vault.Certificate](ctx, v, d.ID)
	return c, err
}

func (e *exporting) run(g *globals, cmd *cobra.Command, c *vault.Certificate) error {
	format := transfer.Format(e.format)
	if !slices.Contains([]transfer.Format{transfer.PEM, transfer.Kubernetes, transfer.CertMagic}, format) {
		return usage(fmt.Sprintf("no format %q (formats: pem, kubernetes, certmagic)", e.format))
	}
	toStorage := strings.Contains(e.out, "://")
	switch {
	case e.out == "-" && format == transfer.CertMagic:
		return usage("certmagic is several files (give --out a directory, or the URL of Caddy's storage)")
	case toStorage && format != transfer.CertMagic:
		return usage("only --format certmagic goes into a storage")
	case e.out == "-" && format == transfer.PEM:
		e.form.Single = true
	}
	files, err := transfer.Export(c, format, e.form)
	if err != nil {
		return err
	}
	switch {
	case e.out == "-":
		_, err = cmd.OutOrStdout().Write(files[0].Data)
		return err
	case toStorage:
		err = e.upload(g, cmd, files)
	default:
		err = e.write(files)
	}
	if err != nil {
		return err
	}
	return e.tell(g, cmd, c, files)
}

// write refuses all files when one of them is there.
func (e *exporting) write(files []transfer.File) error {
	for _, f := range files {
		name := filepath.Join(e.out, filepath.FromSlash(f.Path))
		_, err := os.Lstat(name)
		switch {
		case errors.Is(err, fs.ErrNotExist), err == nil && e.force:
		case err == nil:
			return fmt.Errorf("%s is there already (--force overwrites it)", name)
		default:
			return err
		}
	}
	return transfer.Write(e.out, files)
}

func (e *exporting) upload(g *globals, cmd *cobra.Command, files []transfer.File) error {
	ctx, stop := interruptible(cmd)
	defer stop()
	to, err := store.Open(ctx, e.out, store.Options{Logger: g.progress(cmd).logger(), Owner: owner()})
	if err != nil {
		return err
	}
	defer func() { _ = to.Close() }()
	for _, f := range files {
		_, err := to.Stat(ctx, f.Path)
		switch {
		case e.force, errors.Is(err, fs.ErrNotExist):
		case err == nil:
			return fmt.Errorf("%s is there already in %s (--force overwrites it)", f.Path, to.URL())
		default:
			return interrupted(ctx, err)
		}
	}
	return interrupted(ctx, transfer.Upload(ctx, to, files))
}

func (e *exporting) tell(g *globals, cmd *cobra.Command, c *vault.Certificate, files []transfer.File) error {
	var names []string
	for _, f := range files {
		if strings.Contains(e.out, "://") {
			names = append(names, path.Join(f.Path))
		} else {
			names = append(names, filepath.Join(e.out, filepath.FromSlash(f.Path)))
		}
	}
	if g.json {
		return printJSON(cmd.OutOrStdout(), map[string]any{"id": c.ID, "format": e.format, "files": names})
	}
	for _, n := range names {
		fmt.Fprintln(cmd.OutOrStdout(), n)
	}
	return nil
}
