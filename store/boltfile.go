package store

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"time"

	"go.etcd.io/bbolt"
)

// The file holds three buckets. Every value is sealed: CRC-32C of the key and
// the payload, then the payload, since bbolt itself checks only its meta pages.
//
//	recast   "state"   JSON of fileState
//	records  key       revision and lease as 8 bytes each, then the value
//	leases   id        ttl in nanoseconds, 8 bytes
var (
	bucketState   = []byte("recast")
	bucketRecords = []byte("records")
	bucketLeases  = []byte("leases")
	keyState      = []byte("state")
	keyProbe      = []byte("probe")
)

const schema = 1

type fileState struct {
	Schema   int    `json:"schema"`
	Epoch    string `json:"epoch"`
	Revision int64  `json:"revision"`
	// How many there are, so that a lost page does not pass for deleted records.
	Records int `json:"records"`
	Leases  int `json:"leases"`
}

var errDamaged = errors.New("damaged")

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func seal(key string, payload ...[]byte) []byte {
	n := 4
	for _, p := range payload {
		n += len(p)
	}
	out := make([]byte, 4, n)
	sum := crc32.Checksum([]byte(key), castagnoli)
	for _, p := range payload {
		out = append(out, p...)
		sum = crc32.Update(sum, castagnoli, p)
	}
	binary.BigEndian.PutUint32(out, sum)
	return out
}

// unseal returns a copy of the payload: what bbolt hands out is its mapping.
func unseal(key, sealed []byte) ([]byte, error) {
	if len(sealed) < 4 {
		return nil, fmt.Errorf("%w: record %.60q is cut short", errDamaged, key)
	}
	payload := append([]byte(nil), sealed[4:]...)
	if binary.BigEndian.Uint32(sealed) != crc32.Update(crc32.Checksum(key, castagnoli), castagnoli, payload) {
		return nil, fmt.Errorf("%w: record %.60q does not match its checksum", errDamaged, key)
	}
	return payload, nil
}

func sealRecord(r *Record) []byte {
	var head [16]byte
	binary.BigEndian.PutUint64(head[:], uint64(r.Revision))
	binary.BigEndian.PutUint64(head[8:], uint64(r.Lease))
	return seal(r.Key, head[:], r.Value)
}

func unsealRecord(key, sealed []byte) (*Record, error) {
	p, err := unseal(key, sealed)
	if err != nil {
		return nil, err
	}
	if len(p) < 16 {
		return nil, fmt.Errorf("%w: record %.60q is cut short", errDamaged, key)
	}
	return &Record{
		Key:      string(key),
		Value:    p[16:],
		Revision: int64(binary.BigEndian.Uint64(p)),
		Lease:    LeaseID(binary.BigEndian.Uint64(p[8:])),
	}, nil
}

func putState(tx *bbolt.Tx, s fileState) error {
	b, err := json.Marshal(s)
	if err != nil {
		return err
	}
	return tx.Bucket(bucketState).Put(keyState, seal(string(keyState), b))
}

func getState(tx *bbolt.Tx) (fileState, error) {
	var s fileState
	bucket := tx.Bucket(bucketState)
	if bucket == nil {
		return s, fmt.Errorf("%w: it is not a recast store", errDamaged)
	}
	p, err := unseal(keyState, bucket.Get(keyState))
	if err != nil {
		return s, err
	}
	if err := json.Unmarshal(p, &s); err != nil {
		return s, fmt.Errorf("%w: decode the state record: %w", errDamaged, err)
	}
	if s.Schema > schema {
		return s, fmt.Errorf("it has schema %d, this recast knows %d: %w: update recast", s.Schema, schema, ErrNewer)
	}
	return s, nil
}

// image is all that a file holds.
type image struct {
	state   fileState
	records index
	leases  map[LeaseID]time.Duration
}

// load reads everything. It relies on its caller to turn a panic of bbolt into
// an error.
func (m *image) load(tx *bbolt.Tx) error {
	*m = image{leases: make(map[LeaseID]time.Duration)}
	var err error
	if m.state, err = getState(tx); err != nil {
		return err
	}
	records, leases := tx.Bucket(bucketRecords), tx.Bucket(bucketLeases)
	if records == nil || leases == nil {
		return fmt.Errorf("%w: a bucket is missing", errDamaged)
	}
	err = records.ForEach(func(k, v []byte) error {
		r, err := unsealRecord(k, v)
		if err == nil {
			m.records.put(r)
		}
		return err
	})
	if err != nil {
		return err
	}
	err = leases.ForEach(func(k, v []byte) error {
		p, err := unseal(k, v)
		if err != nil || len(k) != 8 || len(p) != 8 {
			return fmt.Errorf("%w: lease %x", errDamaged, k)
		}
		m.leases[LeaseID(binary.BigEndian.Uint64(k))] = time.Duration(binary.BigEndian.Uint64(p))
		return nil
	})
	if err != nil {
		return err
	}
	if m.records.count != m.state.Records || len(m.leases) != m.state.Leases {
		return fmt.Errorf("%w: it holds %d records and %d leases, but %d and %d were written",
			errDamaged, m.records.count, len(m.leases), m.state.Records, m.state.Leases)
	}
	return nil
}

func leaseKey(id LeaseID) []byte { return binary.BigEndian.AppendUint64(nil, uint64(id)) }

func sealLease(id LeaseID, ttl time.Duration) []byte {
	return seal(string(leaseKey(id)), binary.BigEndian.AppendUint64(nil, uint64(ttl)))
}

// guard runs f and turns a panic into an error, a fault on the mapped file
// (a bad disk, a file cut short under us) included.
func guard(f func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if p := recover(); p != nil {
			text, _, _ := strings.Cut(fmt.Sprint(p), "\n")
			err = fmt.Errorf("%w: %s", errDamaged, text)
		}
	}()
	return f()
}

// create makes a store file that appears at path whole or not at all, and only
// where there is none: another recast may do the same at this moment.
func createFile(path string, m *image, noSync bool) error {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	tmp, err := os.CreateTemp(dir, filepath.Base(path)+".new-*") // 0600
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name())
	if err := tmp.Close(); err != nil {
		return err
	}
	db, err := bbolt.Open(tmp.Name(), 0o600, &bbolt.Options{NoFreelistSync: true, FreelistType: bbolt.FreelistMapType, NoSync: noSync})
	if err != nil {
		return err
	}
	err = errors.Join(fill(db, m), db.Close())
	if err != nil {
		return err
	}
	if err := os.Link(tmp.Name(), path); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	} else if err != nil {
		return os.ErrExist
	}
	return syncDir(dir)
}

// fill writes an image into an empty file, in pieces: the file is nobody's yet.
func fill(db *bbolt.DB, m *image) error {
	err := db.Update(func(tx *bbolt.Tx) error {
		for _, name := range [][]byte{bucketState, bucketRecords, bucketLeases} {
			if _, err := tx.CreateBucket(name); err != nil {
				return err
			}
		}
		return putState(tx, m.state)
	})
	for _, records := range m.records.blocks {
		if err != nil {
			break
		}
		err = db.Update(func(tx *bbolt.Tx) error {
			for _, r := range records {
				if err := tx.Bucket(bucketRecords).Put([]byte(r.Key), sealRecord(r)); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return err
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
