package upstream

import (
	"edge/config"
)

// Registry owns what outlives a configuration.
type Registry struct{}

// NewRegistry returns an empty Registry. It starts nothing.
func NewRegistry(o Options) *Registry { return &Registry{} }

// Prepare builds the pools.
func (r *Registry) Prepare(pools map[string]*config.Pool) (*Set, error) { return nil, nil }

// Status reports the pools.
func (r *Registry) Status() []PoolStatus { return nil }

// Close ends.
func (r *Registry) Close() {}

// Set is the pools of one configuration.
type Set struct{}

// Pool returns the pool called name, or nil.
func (s *Set) Pool(name string) *Pool { return nil }

// Commit starts.
func (s *Set) Commit() {}

// Close releases.
func (s *Set) Close() {}
