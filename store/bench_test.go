package store

import (
	"fmt"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

var value2K = strings.Repeat("v", 2048)

// benchEngines opens each engine as a server would: synced.
func benchEngines(b *testing.B, f func(*testing.B, Store)) {
	b.Run("bolt", func(b *testing.B) {
		s, err := OpenBolt(filepath.Join(b.TempDir(), "recast.db"), BoltOptions{})
		if err != nil {
			b.Fatal(err)
		}
		defer s.Close()
		f(b, s)
	})
	b.Run("etcd", func(b *testing.B) {
		server := startEtcd(b)
		for deadline := time.Now().Add(long); ; {
			s, err := OpenEtcd(ctx(b), EtcdOptions{Endpoints: []string{server.endpoint()}})
			if err == nil {
				defer s.Close()
				f(b, s)
				return
			}
			if time.Now().After(deadline) {
				b.Fatal(err)
			}
		}
	})
}

func BenchmarkCommitSerial(b *testing.B) {
	benchEngines(b, func(b *testing.B, s Store) {
		i := 0
		for b.Loop() {
			if _, err := s.Commit(b.Context(), put(fmt.Sprintf("/k/%08d", i%100000), value2K)); err != nil {
				b.Fatal(err)
			}
			i++
		}
		b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "commits/s")
	})
}

func BenchmarkCommit64(b *testing.B) {
	benchEngines(b, func(b *testing.B, s Store) {
		var i atomic.Int64
		b.SetParallelism(32) // times two processors
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				if _, err := s.Commit(b.Context(), put(fmt.Sprintf("/k/%08d", i.Add(1)%100000), value2K)); err != nil {
					b.Error(err)
					return
				}
			}
		})
		b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "commits/s")
	})
}

// load fills a file store with n records of 2 KiB, off the clock.
func load(b *testing.B, path string, n int) Store {
	b.Helper()
	s, err := OpenBolt(path, BoltOptions{NoSync: true})
	if err != nil {
		b.Fatal(err)
	}
	var ops []Op
	for i := range n {
		if ops = append(ops, put(fmt.Sprintf("/k/%08d", i), value2K)); len(ops) == MaxOps || i == n-1 {
			commit(b, s, ops...)
			ops = nil
		}
	}
	return s
}

func BenchmarkList100k(b *testing.B) {
	s := load(b, filepath.Join(b.TempDir(), "recast.db"), 100000)
	defer s.Close()
	for b.Loop() {
		records, _, err := s.List(b.Context(), "/k/")
		if err != nil || len(records) != 100000 {
			b.Fatal(len(records), err)
		}
	}
}

func BenchmarkGetOf100k(b *testing.B) {
	s := load(b, filepath.Join(b.TempDir(), "recast.db"), 100000)
	defer s.Close()
	i := 0
	for b.Loop() {
		if _, err := s.Get(b.Context(), fmt.Sprintf("/k/%08d", i*7919%100000)); err != nil {
			b.Fatal(err)
		}
		i++
	}
}

// A start with 100,000 machines: every page checked, every record read.
func BenchmarkOpen100k(b *testing.B) {
	path := filepath.Join(b.TempDir(), "recast.db")
	if err := load(b, path, 100000).Close(); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		s, err := OpenBolt(path, BoltOptions{})
		if err != nil {
			b.Fatal(err)
		}
		if err := s.Close(); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkWatchFanOut(b *testing.B) {
	s := load(b, filepath.Join(b.TempDir(), "recast.db"), 0)
	defer s.Close()
	const watchers = 100
	done := make(chan error, watchers)
	for range watchers {
		w, err := s.Watch(b.Context(), "/k/")
		if err != nil {
			b.Fatal(err)
		}
		for !next(b, w).Synced {
		}
		go func() {
			for e := range w.Events {
				if string(e.Value) == "end" {
					done <- nil
					return
				}
			}
			done <- w.Err()
		}()
	}
	for b.Loop() {
		commit(b, s, put("/k/x", "v"))
	}
	commit(b, s, put("/k/x", "end"))
	for range watchers {
		if err := <-done; err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.N)*watchers/b.Elapsed().Seconds(), "events/s")
}
