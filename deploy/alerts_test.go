package deploy_test

import (
	"os/exec"
	"strings"
	"testing"
)

// The rules fire when they should, and only then: testdata/alerts.yaml says when.
func TestAlertsFireWhenTheyShould(t *testing.T) {
	promtool := need(t, "promtool")
	for _, args := range [][]string{{"check", "rules", "--lint-fatal", "alerts.yaml"}, {"test", "rules", "testdata/alerts.yaml"}} {
		out, err := exec.CommandContext(t.Context(), promtool, args...).CombinedOutput()
		if err != nil || !strings.Contains(string(out), "SUCCESS") {
			t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
}
