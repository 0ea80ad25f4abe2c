package kvstore

import (
	"context"
	"errors"

	kvstorev1 "github.com/kvstore/kvstore/clients/go/gen/kvstore/v1"
)

// Put stores value, which is anything that encoding/json can write, and gives the key's new version.
// Options: [WithTTL], [WithIfVersion], [WithRequestID].
func (c *Client) Put(ctx context.Context, key string, value any, options ...Option) (uint64, error) {
	request, err := putJSON(key, value, options)
	return c.put(ctx, request, err)
}

// PutText stores text that is JSON already, byte for byte. Else as Put.
func (c *Client) PutText(ctx context.Context, key, text string, options ...Option) (uint64, error) {
	request, err := putText(key, text, options)
	return c.put(ctx, request, err)
}

// PutRaw stores any bytes. Else as Put.
func (c *Client) PutRaw(ctx context.Context, key string, raw []byte, options ...Option) (uint64, error) {
	request, err := putRaw(key, raw, options)
	return c.put(ctx, request, err)
}

func (c *Client) put(ctx context.Context, request *kvstorev1.PutRequest, err error) (uint64, error) {
	if err != nil {
		return 0, err
	}
	answer, err := invoke(ctx, c, write, request, kvstorev1.KvServiceClient.Put)
	return answer.GetVersion(), err
}

// Get reads one key. A missing key is nil without an error. Options: [WithConsistency].
func (c *Client) Get(ctx context.Context, key string, options ...Option) (*Entry, error) {
	request, err := get(key, options)
	if err != nil {
		return nil, err
	}
	return found(invoke(ctx, c, read, request, kvstorev1.KvServiceClient.Get))
}

// found turns the answer for a missing key into nil.
func found(answer *kvstorev1.GetResponse, err error) (*Entry, error) {
	var failure *Error
	if errors.As(err, &failure) && failure.Reason == reasonKeyNotFound {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return entryOfGet(answer), nil
}

// Delete removes one key and tells whether it was there. Options: [WithIfVersion], [WithRequestID].
func (c *Client) Delete(ctx context.Context, key string, options ...Option) (bool, error) {
	request, err := remove(key, options)
	if err != nil {
		return false, err
	}
	answer, err := invoke(ctx, c, write, request, kvstorev1.KvServiceClient.Delete)
	return answer.GetDeleted(), err
}

// BatchPut stores many values, each anything that encoding/json can write, and tells how many. Each shard's part is applied whole or
// not at all; the batch over all shards is not atomic. Options: [WithTTL], [WithRequestID].
func (c *Client) BatchPut(ctx context.Context, entries map[string]any, options ...Option) (int, error) {
	request, err := batchPutJSON(entries, options)
	return c.batchPut(ctx, request, err)
}

// BatchPutText stores many texts that are JSON already, byte for byte. Else as BatchPut.
func (c *Client) BatchPutText(ctx context.Context, entries map[string]string, options ...Option) (int, error) {
	request, err := batchPutText(entries, options)
	return c.batchPut(ctx, request, err)
}

func (c *Client) batchPut(ctx context.Context, request *kvstorev1.BatchPutRequest, err error) (int, error) {
	if err != nil {
		return 0, err
	}
	answer, err := invoke(ctx, c, write, request, kvstorev1.KvServiceClient.BatchPut)
	return int(answer.GetCount()), err
}

// BatchGet reads many keys, in their order; missing ones are left out. Options: [WithConsistency].
func (c *Client) BatchGet(ctx context.Context, keys []string, options ...Option) ([]*Entry, error) {
	request, err := batchGet(keys, options)
	if err != nil {
		return nil, err
	}
	answer, err := invoke(ctx, c, read, request, kvstorev1.KvServiceClient.BatchGet)
	if err != nil {
		return nil, err
	}
	return entriesOf(answer.GetItems()), nil
}

// Stats counts what one node stores and has done.
func (c *Client) Stats(ctx context.Context) (*kvstorev1.StatsResponse, error) {
	return invoke(ctx, c, read, &kvstorev1.StatsRequest{}, kvstorev1.KvServiceClient.Stats)
}
