package inventory

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// Encode is the set's canonical JSON: the same declared objects give the same
// bytes, in whatever order and files they were written.
func (s *Set) Encode() ([]byte, error) {
	b, err := Canonical(s)
	if err != nil {
		return nil, fmt.Errorf("encode set: %w", err)
	}
	return b, nil
}

// Digest names the set by its canonical form.
func (s *Set) Digest() Digest {
	b, err := s.Encode()
	if err != nil {
		// Every text of a valid set came through YAML, which is Unicode, and
		// every number fits a double.
		panic("inventory: " + err.Error())
	}
	return DigestOf(b)
}

// DecodeSet reads what Encode wrote. It refuses an unknown field, which a newer
// recast wrote and which must not be lost, and a reference that leads nowhere.
func DecodeSet(b []byte) (*Set, error) {
	s := &Set{}
	if err := decodeStrict(b, s); err != nil {
		return nil, fmt.Errorf("decode set: %w", err)
	}
	if err := s.whole(); err != nil {
		return nil, fmt.Errorf("decode set: %w", err)
	}
	s.index()
	return s, nil
}

// whole finds what index and the look-ups rely on.
func (s *Set) whole() error {
	images, definitions := map[string]bool{}, map[string]bool{}
	for _, n := range s.Networks {
		if n == nil || n.Name == "" || !n.Subnet.IsValid() {
			return errors.New("a network without name or subnet")
		}
	}
	for _, i := range s.Images {
		if i == nil || i.Name == "" || i.Digest == "" {
			return errors.New("an image without name or digest")
		}
		images[i.Name] = true
	}
	for _, d := range s.Definitions {
		if d == nil || !images[d.Image] {
			return errors.New("a definition without image")
		}
		definitions[d.Name] = true
	}
	for _, g := range s.Groups {
		if g == nil || !definitions[g.Definition] {
			return errors.New("a group without definition")
		}
	}
	for _, m := range s.Machines {
		if m == nil || m.Name == "" {
			return errors.New("a machine without name")
		}
	}
	return nil
}

// decodeStrict reads exactly one JSON value into v.
func decodeStrict(b []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("text behind the value")
	}
	return nil
}
