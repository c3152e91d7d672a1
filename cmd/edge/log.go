package main

import (
	"context"
	"io"
	"log/slog"
	"sync/atomic"

	"edge/config"
)

// logger is the program's log and the switch of its format.
type logger struct {
	*slog.Logger

	format *formatHandler
}

func newLog(w io.Writer, c config.Log) *logger {
	h := &formatHandler{text: slog.NewTextHandler(w, nil), asJSON: slog.NewJSONHandler(w, nil), json: new(atomic.Bool)}
	h.json.Store(c.Format == "json")
	return &logger{slog.New(h), h}
}

// formatHandler writes text or JSON, as the configuration in force says.
type formatHandler struct {
	text, asJSON slog.Handler
	json         *atomic.Bool // shared by all that derive from one
}

func (h *formatHandler) pick() slog.Handler {
	if h.json.Load() {
		return h.asJSON
	}
	return h.text
}

func (h *formatHandler) Enabled(ctx context.Context, l slog.Level) bool {
	return h.pick().Enabled(ctx, l)
}

func (h *formatHandler) Handle(ctx context.Context, r slog.Record) error {
	return h.pick().Handle(ctx, r)
}

func (h *formatHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &formatHandler{h.text.WithAttrs(attrs), h.asJSON.WithAttrs(attrs), h.json}
}

func (h *formatHandler) WithGroup(name string) slog.Handler {
	return &formatHandler{h.text.WithGroup(name), h.asJSON.WithGroup(name), h.json}
}
