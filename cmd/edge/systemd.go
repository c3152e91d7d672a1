package main

import (
	"context"
	"log/slog"
	"strings"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
)

// notify tells systemd of a change of state (sd_notify(3)). Without
// $NOTIFY_SOCKET it does nothing; that systemd cannot be told is no reason to
// stop serving.
func notify(states ...string) {
	_, _ = daemon.SdNotify(false, strings.Join(states, "\n"))
}

// monotonic is what Type=notify-reload wants beside RELOADING=1.
func monotonic() string { return daemon.SdNotifyMonotonicUsec() }

// watchdog tells systemd twice in each WatchdogSec that the program runs.
func watchdog(ctx context.Context, log *slog.Logger) {
	interval, err := daemon.SdWatchdogEnabled(false)
	if err != nil {
		log.WarnContext(ctx, "watchdog off", slog.Any("error", err))
		return
	}
	if interval == 0 {
		return
	}
	tick := time.NewTicker(interval / 2)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			notify(daemon.SdNotifyWatchdog)
		case <-ctx.Done():
			return
		}
	}
}
