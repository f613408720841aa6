package store

import "testing"

func etcdEngine() engine {
	return engine{open: func(t *testing.T, _ int) Store { t.Skip("needs etcd"); return nil }, crash: func(t *testing.T) ([]byte, Store) { t.Skip("needs etcd"); return nil, nil }, rounds: 1}
}
