package acme

import (
	"net/url"
	"strings"
	"time"

	"edge/config"
)

// Directories of the CAs that edge knows more about than their directory says.
const (
	letsEncrypt        = "https://acme-v02.api.letsencrypt.org/directory"
	letsEncryptStaging = "https://acme-staging-v02.api.letsencrypt.org/directory"
	google             = "https://dv.acme-v02.api.pki.goog/directory"
	googleStaging      = "https://dv.acme-v02.test-api.pki.goog/directory"
)

// StagingOf is the directory where a CA lets one try without consequences; "" is
// none that edge knows of. That of a staging directory is itself.
//
//   - https://letsencrypt.org/docs/staging-environment/
//   - https://cloud.google.com/certificate-manager/docs/public-ca-tutorial
func StagingOf(directory string) string {
	switch directory {
	case letsEncrypt, letsEncryptStaging:
		return letsEncryptStaging
	case google, googleStaging:
		return googleStaging
	default:
		return ""
	}
}

// QuotasOf is the quotas of issuer c with the preset of its CA for each that is
// not set. Let's Encrypt's are its limits (https://letsencrypt.org/docs/rate-limits/),
// so that it never has to refuse. Those of other CAs depend on a contract or a
// project (https://cloud.google.com/certificate-manager/docs/quotas), and Let's
// Encrypt's staging has far higher ones
// (https://letsencrypt.org/docs/staging-environment/): there the preset only
// stops a runaway.
func QuotasOf(c *config.Issuer) config.Quotas {
	const hour, week = time.Hour, 7 * 24 * time.Hour
	preset := config.Quotas{
		Orders:     config.Quota{Count: 300, Per: 3 * hour},
		Domain:     config.Quota{Off: true},
		Duplicates: config.Quota{Off: true},
		Failed:     config.Quota{Count: 10, Per: hour},
	}
	if c.Directory == letsEncrypt {
		preset.Domain = config.Quota{Count: 50, Per: week}
		preset.Duplicates = config.Quota{Count: 5, Per: week}
		preset.Failed = config.Quota{Count: 5, Per: hour}
	}
	quotas := c.Quotas
	for _, q := range []struct{ set, preset *config.Quota }{
		{&quotas.Orders, &preset.Orders},
		{&quotas.Domain, &preset.Domain},
		{&quotas.Duplicates, &preset.Duplicates},
		{&quotas.Failed, &preset.Failed},
	} {
		if *q.set == (config.Quota{}) {
			*q.set = *q.preset
		}
	}
	return quotas
}

// maxNames is how many names a certificate of a profile may hold, 0 for not
// known. No directory says so; Let's Encrypt does on
// https://letsencrypt.org/docs/profiles/.
func maxNames(directory, profile string) int {
	u, err := url.Parse(directory)
	if err != nil || !strings.HasSuffix("."+u.Hostname(), ".letsencrypt.org") {
		return 0
	}
	switch profile {
	case "classic", "":
		return 100
	case "tlsserver", "shortlived":
		return 25
	default:
		return 0
	}
}
