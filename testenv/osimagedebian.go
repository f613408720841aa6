package testenv

import (
	"context"
	"errors"
	"io"
)

func osDebianInputs(o OSOptions, w io.Writer) error { return errors.New("not yet") }

func osBuildDebian(ctx context.Context, o OSOptions, dir string) (osLayout, error) {
	return osLayout{}, errors.New("not yet")
}
