"""What returns no numbers that a model's dtype could change, and why."""

from cases import no_numbers

no_numbers(
    "it says where, or what something is: names, places, shapes and whole numbers",
    "At.axes", "At.positions", "Config.attention_only", "Config.n_logits", "Config.from_dict",
    "Config.replace", "Config.to_dict", "Edit.begins", "Edit.sites", "Frame.read",
    "Intervention.sites", "Metric.name", "Metric.read", "Metric.vocabulary", "Metric.describe",
    "Where.items", "shapes", "metrics.read_columns", "metrics.check_metric",
    "Edit.check", "Edit.check_single",
)  # fmt: skip
no_numbers(
    "it picks out of values that are given, and calculates nothing",
    "At.donor", "Frame.take", "metrics.of_prompts",
)  # fmt: skip
no_numbers(
    "it says what every metric or intervention has; theirs have cases of their own",
    "Metric.__call__", "Intervention.__call__",
)  # fmt: skip
no_numbers(
    "it makes parameters of a dtype of its own, from no model",
    "init", "handbuilt.backup_head", "handbuilt.duplicate_detection",
    "handbuilt.previous_token_induction", "handbuilt.reversal", "handbuilt.token_fraction",
)  # fmt: skip
no_numbers(
    "it reads or writes files, bit for bit",
    "load", "save", "fetch", "ship", "shipped", "models", "card", "results.load", "results.save",
    "report.View.save", "circuits.Circuit.load", "circuits.Circuit.save", "Claim.save",
    "Claim.load",
)  # fmt: skip
no_numbers(
    "it is text, or says what something is in words",
    "Card.architecture", "Card.attached", "Card.kept", "Card.markdown", "Claim.from_json",
    "Claim.html", "Claim.lacking", "Claim.of_role", "Claim.text", "Claim.to_json", "Claim.needs",
    "claims.in_words", "results.claim", "Generated.texts",
)  # fmt: skip
no_numbers("it is `Claim.run` once more", "Claim.rerun")
no_numbers(
    "it counts experiments, prompts or operations by their shapes",
    "Experiment.__len__", "Experiment.n_prompts", "Plan.cost", "Plan.n_chunks", "plan",
    "sae.Store.chunks",
)  # fmt: skip
no_numbers("it draws random components by a seed alone", "claims.random_components")
no_numbers(
    "it goes from text to token ids and back",
    "Tokenizer.__call__", "Tokenizer.add_bos", "Tokenizer.decode", "Tokenizer.encode",
    "Tokenizer.from_folder", "Tokenizer.is_single_token", "Tokenizer.is_unknown",
    "Tokenizer.positions_of", "Tokenizer.positions_of_span", "Tokenizer.save",
    "Tokenizer.single_token", "Tokenizer.str_tokens", "Tokenizer.template",
    "Tokenizer.token_texts", "handbuilt.Alphabet.decode", "handbuilt.Alphabet.encode",
    "handbuilt.Alphabet.id",
)  # fmt: skip
no_numbers(
    "it holds tokens, which are whole numbers",
    "Tokens.__getitem__", "Tokens.columns", "Tokens.differ", "Tokens.lengths", "Tokens.mask",
    "Tokens.shape", "Tokens.of",
)  # fmt: skip
no_numbers(
    "it makes prompts, without a model",
    "Task.__getitem__", "Task.equal_length", "Task.labels", "Task.record", "batches_of",
    "handbuilt.Known.make", "tasks.docstring", "tasks.factual_recall", "tasks.gendered_pronouns",
    "tasks.greater_than", "tasks.induction", "tasks.ioi", "tasks.make", "tasks.multiple_choice",
    "tasks.subject_verb_agreement",
)  # fmt: skip
no_numbers(
    "it is a set of edges: places in a graph",
    "circuits.Circuit.full", "circuits.Circuit.names", "circuits.Circuit.nodes",
    "circuits.Circuit.of", "circuits.Circuit.of_nodes", "circuits.Circuit.pruned",
    "circuits.Graph.edges", "circuits.Graph.exists", "circuits.Graph.layer_of",
    "circuits.Graph.mask", "circuits.Graph.n_edges", "circuits.Graph.n_receivers",
    "circuits.Graph.n_senders", "circuits.Graph.per_layer", "circuits.Graph.place",
    "circuits.Graph.readers", "circuits.Graph.reads", "circuits.Graph.receiver",
    "circuits.Graph.receiver_index", "circuits.Graph.receivers", "circuits.Graph.sender",
    "circuits.Graph.sender_index", "circuits.Graph.senders", "circuits.Graph.slots",
    "circuits.Graph.to_dict", "circuits.Graph.where", "circuits.top_edges",
    "circuits.greedy_edges", "circuits.without",
)  # fmt: skip
no_numbers("it is a circuit; what it goes by is what evaluate_circuits gives", "circuits.acdc")
no_numbers(
    "it draws prompts by a seed alone",
    "scrubbing.Hypothesis.draw", "scrubbing.Hypothesis.n_opened", "scrubbing.Hypothesis.named",
)  # fmt: skip
no_numbers(
    "it draws what it is given",
    "report.attention_view", "report.component_bars", "report.draw_circuit",
    "report.draw_feature_circuit", "report.front_curves", "report.heatmap", "report.lens_curves",
    "report.lens_table", "report.phase_map", "report.probe_curves", "report.projections",
    "report.scatter", "report.score_map", "report.spread", "report.steering_curves",
    "report.token_view", "report.write_features", "report.write_report",
)  # fmt: skip
