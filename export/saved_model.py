"""SavedModel with named signatures."""

import tensorflow as tf


def logits_function(model, batch_size=None):
    """An inference function of a deployed model: input "image", output `{"logits"}`.

    Args:
      model: the Keras model of `freeze`.
      batch_size: images a call; None for any number.

    Returns:
      A `tf.function` with one input signature.
    """
    spec = tf.TensorSpec([batch_size, *model.input_shape[1:]], tf.float32, name="image")

    @tf.function(input_signature=[spec], autograph=False)
    def serve(image):
        return {"logits": model(image, training=False)}

    return serve


def write_saved_model(model, path, batch_size=None):
    """Writes a SavedModel directory with the signature `serving_default` (image -> logits).

    For any batch size it also has `probabilities` (image -> logits, probabilities), for servers that compute no softmax.

    Args:
      model: the Keras model of `freeze`.
      path: directory to write.
      batch_size: images a call; None for any number.
    """
    serve = logits_function(model, batch_size)
    signatures = {"serving_default": serve}
    if batch_size is None:

        @tf.function(input_signature=serve.input_signature, autograph=False)
        def probabilities(image):
            logits = serve(image)["logits"]
            return {"logits": logits, "probabilities": tf.nn.softmax(logits)}

        signatures["probabilities"] = probabilities
    # A plain module: the model's own Keras machinery would be saved as well, and is of no use to a server.
    module = tf.Module()
    module.variables_of_model = [variable.value for variable in model.variables]
    tf.saved_model.save(module, str(path), signatures=signatures)
